"""The data and alert backbone of an Upbit trading bot, on Dagster.

Dagster is spoken in `definitions`, `partitions`, `assets/`, `schedules/`, `sensors/`, `resources/`,
`runtime/` and `monitoring/dagster_instance`; everything else is plain Python. docs/architecture.md
draws how they hang together.
"""
