"""What became of the bot's rejections: exit rules, outcomes, weekly sums and their picture.

Telling it belongs in `alerts/reject_summary`.
"""
