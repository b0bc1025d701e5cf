"""Alerts: which there are (`kinds`, `failures`), which were delivered (`ledger`), delivering them.

Plain Python that never imports Dagster. When a tick looks for alerts belongs in `sensors/`; what
n8n does with one, in `config/n8n_workflows`.
"""
