"""Signals: what there is (`catalogue`), what is due, and how each is computed, in its own folder.

Plain Python that never imports Dagster. `catalogue`, `coverage` and `due` import no computing
library; `registry` finds the functions that do.
"""
