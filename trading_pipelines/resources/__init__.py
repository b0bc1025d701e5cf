"""Dagster's resources: thin, typed shells around plain objects.

What the objects do belongs to their own packages.
"""
