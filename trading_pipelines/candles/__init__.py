"""Candles from the exchange to the tables: plain Python that never imports Dagster.

`windows` cuts time, `exchange` asks and validates, `rate_limit` spaces the requests of the whole
installation, `store` writes, `coverage` knows what was asked for, `download` puts them together,
`resample` makes hours of minutes, `checks` looks for broken contracts and `due` says what to do
next. What a candle means for trading belongs in `signals/`.
"""
