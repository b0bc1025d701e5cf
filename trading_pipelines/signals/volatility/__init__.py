"""Volatility: realised variance, the HAR model, the GARCH baseline, forecasts and their score.

Which days are due belongs in `signals/due`.
"""
