"""Scripts that play the whole product on a home of their own: the demo and the drill.

They are handed what shows their steps; parsing and printing belong in `cli/`.
"""
