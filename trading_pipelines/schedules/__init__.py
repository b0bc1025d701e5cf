"""Dagster's schedules, one module a subject: each tick asks the tables what is due.

What is due is decided in the plain packages; a schedule translates it into run requests.
"""
