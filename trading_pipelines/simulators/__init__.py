"""Stand-ins on loopback for what tests and the demo cannot reach: Upbit and Discord.

They import nothing of the project that they are used to test, so that they cannot share a mistake
with it.
"""
