"""Candles: requests to the exchange, what answer is believed, storage, coverage, what is due.

Plain Python that never imports Dagster. What a candle means for trading belongs in `signals/`.
"""
