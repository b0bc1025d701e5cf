"""What Dagster materialises, one module a group of assets, named as the group is.

Nothing is computed here: assets and checks call the plain packages and show what those return.
"""
