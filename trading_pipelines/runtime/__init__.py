"""The running services: the home, the supervisor of `up`, the processes of `serve`, the web server.

What Dagster runs on them belongs in `assets/`, `schedules/` and `sensors/`.
"""
