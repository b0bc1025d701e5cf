"""What an operator may set: the strategy file and the environment, typed and strict.

What a setting does belongs to the module that uses it. Importing reads nothing: the edge
(definitions, command line) reads once and passes on.
"""
