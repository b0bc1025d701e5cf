"""Market regimes: labels of hours, the bot's history of them, their diagnostics, and the RSI.

Which days are due belongs in `signals/due`.
"""
