"""Alerts: what is to be told, whether it was delivered, and delivering it.

Plain Python. When a tick looks for alerts belongs in `sensors/`; what n8n does with one lies in
`config/n8n_workflows`.
"""
