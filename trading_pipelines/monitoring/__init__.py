"""The state of an installation: measured and judged (`health`), or on one screen (`status`).

`dagster_instance` alone imports private names of Dagster. No computing library is imported here, so
that looking costs little.
"""
