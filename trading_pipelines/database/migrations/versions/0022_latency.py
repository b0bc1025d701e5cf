"""How long an answer of the exchange takes, for the run that asks next.

Revision ID: 0022
"""

from alembic import op
from sqlalchemy import text

revision = "0022"
down_revision = "0021"

SCHEMA = """
ALTER TABLE trading_pipelines.request_slots ADD COLUMN latency interval;
COMMENT ON COLUMN trading_pipelines.request_slots.latency IS
    'how long an answer takes, smoothed; empty: not known, or the last try has failed';
"""


def upgrade() -> None:
    """Add the column; the version before goes on without it."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("request_slots", "latency", schema="trading_pipelines")
