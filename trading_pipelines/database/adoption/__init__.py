"""Adopting the database of a bot that runs already: its contract, what is inspected, what is found.

Read-only until the operator says so. The tables' own changes belong in `database/migrations`.
"""
