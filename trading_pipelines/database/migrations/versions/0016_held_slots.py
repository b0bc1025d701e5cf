"""Requests side by side: which reserved slots are void, and which block is one offence.

Revision ID: 0016
"""

from alembic import op
from sqlalchemy import text

revision = "0016"
down_revision = "0015"

SCHEMA = """
ALTER TABLE trading_pipelines.request_slots
    ADD COLUMN held_until timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN blocked_at timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN trading_pipelines.request_slots.held_until IS
    'slots before it that were reserved and are not used yet are void';
COMMENT ON COLUMN trading_pipelines.request_slots.blocked_at IS
    'when the last block was told; requests of before it are the same offence';
"""


def upgrade() -> None:
    """Add the columns; the version before goes on without them."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take them away."""
    for column in ("held_until", "blocked_at"):
        op.drop_column("request_slots", column, schema="trading_pipelines")
