"""The replay exchange: Upbit's quotation API on loopback, over a recording or a generated market.

It stands in for the exchange in the demo, in tests and in benchmarks, and imports nothing of what
it is used to test, so that it cannot share a mistake with it.
"""

from trading_pipelines.simulators.upbit.faults import BadFaultError, Fault
from trading_pipelines.simulators.upbit.market import (
    BadRecordingError,
    GeneratedMarket,
    Market,
    Recording,
)
from trading_pipelines.simulators.upbit.server import ReplayExchange, Stats

__all__ = [
    "BadFaultError",
    "BadRecordingError",
    "Fault",
    "GeneratedMarket",
    "Market",
    "Recording",
    "ReplayExchange",
    "Stats",
]
