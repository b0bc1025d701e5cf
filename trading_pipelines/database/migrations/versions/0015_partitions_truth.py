"""Which partition stands red in which check, and where Dagster's events and the tables parted.

Revision ID: 0015
"""

from alembic import op
from sqlalchemy import text

revision = "0015"
down_revision = "0011"

SCHEMA = """
CREATE TABLE trading_pipelines.failed_checks (
    asset text NOT NULL,
    check_name text NOT NULL,
    symbol varchar(20) NOT NULL,
    day date NOT NULL,
    finding text NOT NULL,
    failed_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (asset, check_name, symbol, day)
);
COMMENT ON TABLE trading_pipelines.failed_checks IS
    'Which partition stands red in which check; a row goes when the partition is healed.';
COMMENT ON COLUMN trading_pipelines.failed_checks.symbol IS 'empty where the asset is pooled';
COMMENT ON COLUMN trading_pipelines.failed_checks.finding IS 'what the check found last';

CREATE TABLE trading_pipelines.reconciliations (
    asset text PRIMARY KEY,
    compared_at timestamptz NOT NULL,
    differed_at timestamptz,
    said text,
    left_over int NOT NULL DEFAULT 0
);
COMMENT ON TABLE trading_pipelines.reconciliations IS
    'The last comparison of Dagster''s events with the tables, by asset.';
COMMENT ON COLUMN trading_pipelines.reconciliations.differed_at IS
    'when the two differed last; empty where they never did';
COMMENT ON COLUMN trading_pipelines.reconciliations.said IS
    'what differed then, and what was done about it';
COMMENT ON COLUMN trading_pipelines.reconciliations.left_over IS
    'partitions that differed still after the last comparison';
"""


def upgrade() -> None:
    """Add the tables."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take them away."""
    for table in ("failed_checks", "reconciliations"):
        op.drop_table(table, schema="trading_pipelines")
