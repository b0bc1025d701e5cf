"""Stand-ins on loopback for what tests and the demo cannot reach: Upbit and Discord.

They import nothing of the project, so that they cannot share a mistake with what they test.
"""
