"""What became of the bot's rejections: exit rules, outcomes, weekly sums and their picture.

The weekly message about them belongs in `alerts/reject_summary`.
"""
