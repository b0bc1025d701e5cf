"""n8n: importing our workflows into it, checking them there, and an n8n of our own for tests.

What the workflows do lies in `config/n8n_workflows`; posting to them belongs in `alerts/webhooks`.
"""
