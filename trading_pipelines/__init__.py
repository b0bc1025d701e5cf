"""Market data, signals and alerts of an Upbit trading bot, orchestrated by Dagster.

The modules that speak Dagster are `definitions`, `partitions`, `schedules`, `assets/` and
`resources/`; everything else is plain Python and never imports it (`docs/architecture.md`).
"""
