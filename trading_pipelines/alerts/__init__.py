"""Alerts: what is to be told, whether it was, and telling it. Plain Python, without Dagster."""
