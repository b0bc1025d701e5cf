"""What became of the bot's decisions: exit rules, outcomes; of rejections weekly sums, a picture.

The weekly message about rejections belongs in `alerts/reject_summary`, what taken and refused
entries come to side by side in `scorecard/`.
"""
