"""Signals: which there are (`catalogue`), which are due, and how each is computed, by folder.

Plain Python that never imports Dagster. `catalogue`, `coverage` and `due` import no computing
library; `registry` finds the functions that do.
"""
