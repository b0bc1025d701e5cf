"""Candles: how they are asked for, believed, stored, complete and due.

Plain Python that never imports Dagster. What a candle means for trading belongs in `signals/`.
"""
