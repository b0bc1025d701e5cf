"""Dagster's resources: thin, typed shells around plain objects.

What the objects do belongs in their own packages.
"""
