"""How long a failed partition waits for its next attempt: doubled by each failure, up to a longest.

The waiting time is counted in the statement that records the failure, so that no attempt of another
process is lost. Candles and signals wait by the same formula; what else a failure changes belongs
in their modules `coverage`.
"""

from datetime import timedelta

from trading_pipelines.settings.strategy import HealingSettings

BACK_OFF = "least(%(first)s * 2 ^ least(failures - 1, 10), %(longest)s)"
"""SQL for an interval: backoff_seconds * 2 ^ (failures - 1), at most max_backoff_seconds.

`failures` is a column of the statement: those in a row, the new one among them. The parameters are
those of `back_off_parameters`.
"""


def back_off_parameters(healing: HealingSettings) -> dict[str, int | timedelta]:
    """Return the settings that a statement which records a failure takes as parameters."""
    return {
        "attempts": healing.attempts,
        "first": timedelta(seconds=healing.backoff_seconds),
        "longest": timedelta(seconds=healing.max_backoff_seconds),
    }
