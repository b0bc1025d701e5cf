"""What is told from candles: regime labels, realised variance, volatility forecasts, their score.

Plain arithmetic on frames and sequences (`regime`, `realized`, `volatility`, `garch`, `score`) and
the tables it is read from and written to (`tables`, `due`, `compute`); what a person or the bot is
shown of it (`publish`, `plots`, `diagnostics`). Never imports Dagster. How candles come in belongs
in `candles/`.
"""
