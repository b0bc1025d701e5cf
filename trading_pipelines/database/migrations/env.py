"""Alembic's entry point: one transaction, one migrator at a time, version table in our schema."""

import psycopg
from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from trading_pipelines.database.connection import open_session

# Any number that nobody else locks; eight starters at once must make one migration.
MIGRATION_LOCK = 7_301_201


def _session() -> psycopg.Connection:
    session = open_session(context.config.attributes["url"])
    session.autocommit = False  # one transaction: SQLAlchemy begins none
    return session


engine = create_engine("postgresql+psycopg://", creator=_session, poolclass=NullPool)
with engine.begin() as connection:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS trading_pipelines"))
    context.configure(connection=connection, version_table_schema="trading_pipelines")
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
