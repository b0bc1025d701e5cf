"""The command line: `main`, and a module for each family of commands.

Commands parse, call and print. What they call lives elsewhere, and nobody imports from here.
"""
