"""Is the AI worth its money: what its decisions came to, the statistics, the week, the picture.

What became of a single decision by the exits is computed in `signals/rejections`, which of the
bot's sales closed which purchases in `alerts/daily_report/pnl`.
"""
