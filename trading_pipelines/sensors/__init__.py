"""Dagster's sensors: they look at the bot's rows, at finished runs and at health, and act.

What is sent and what is said belongs in `alerts/` and `monitoring/`.
"""
