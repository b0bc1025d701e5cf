"""What assets and schedules are handed by Dagster: thin, typed, built from plain objects."""
