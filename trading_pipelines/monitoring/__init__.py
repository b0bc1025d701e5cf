"""How it stands: facts, measuring and judging them (`health`), one screen (`status`).

`dagster_instance` is the one module that reads what is private to Dagster. No computing library is
imported here: looking is cheap.
"""
