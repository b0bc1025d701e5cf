"""Which Postgres is used, and bringing its schema up to date.

Two databases on one server: the market database (the bot's tables in `public`, ours in the schema
`trading_pipelines`) and Dagster's storage. Both are on the operator's server when `DATABASE_URL` is
set, else on the embedded server of the home. Queries belong to the packages that ask them.
"""
