"""Dagster's sensors: they look at the bot's rows, at finished runs and at health, and act.

What an alert says belongs in `alerts/`, what is healthy in `monitoring/`.
"""
