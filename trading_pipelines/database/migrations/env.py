"""Alembic's entry point: one transaction, one migrator at a time, version table in our schema."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

# Any number that nobody else locks; eight starters at once must make one migration.
MIGRATION_LOCK = 7_301_201

engine = create_engine(
    make_url(context.config.attributes["url"]).set(drivername="postgresql+psycopg"),
    poolclass=NullPool,
)
with engine.begin() as connection:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS trading_pipelines"))
    context.configure(connection=connection, version_table_schema="trading_pipelines")
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
