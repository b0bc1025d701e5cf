"""The live edge: the reader of the exchange's candle stream, by which a closed minute is there.

What the stream shows is provisional: only REST, by `candles/download`, vouches for a minute, says
that one is quiet, or completes a day. Dagster is not imported; the process belongs in `runtime/`.
"""
