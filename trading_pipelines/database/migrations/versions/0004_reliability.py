"""Reliability: which partitions are left failed, and how large the databases were when.

Revision ID: 0004
"""

from alembic import op
from sqlalchemy import text

revision = "0004"
down_revision = "0003"

SCHEMA = """
ALTER TABLE trading_pipelines.candle_coverage
    ADD COLUMN left_failed boolean NOT NULL DEFAULT false,
    ADD COLUMN left_at timestamptz,
    ADD COLUMN trouble text,
    ADD COLUMN tries integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN trading_pipelines.candle_coverage.left_failed IS
    'Its tries are spent: looked at once a day, or when it is asked for.';
COMMENT ON COLUMN trading_pipelines.candle_coverage.left_at IS
    'When it was left failed; the daily tries after that do not move it.';
COMMENT ON COLUMN trading_pipelines.candle_coverage.trouble IS
    'Of the last failure, or of what it was left failed by: away, answer, contract or market.';
COMMENT ON COLUMN trading_pipelines.candle_coverage.tries IS
    'How many of the failures in a row, from the last one back, are of that one kind.';

ALTER TABLE trading_pipelines.signal_coverage
    ADD COLUMN left_failed boolean NOT NULL DEFAULT false,
    ADD COLUMN failed_inputs text;
COMMENT ON COLUMN trading_pipelines.signal_coverage.left_failed IS
    'Its tries are spent: not computed until it is asked for or its inputs change.';
COMMENT ON COLUMN trading_pipelines.signal_coverage.failed_inputs IS
    'Digest of the versions of the inputs that the last failed attempt saw.';

-- Each alert that is deleted is looked for among those that a digest told.
CREATE INDEX idx_alert_deliveries_digest
    ON trading_pipelines.alert_deliveries (digest_id) WHERE digest_id IS NOT NULL;

CREATE TABLE trading_pipelines.look_backs (
    symbol varchar(20) PRIMARY KEY,
    first_day date NOT NULL
);
COMMENT ON TABLE trading_pipelines.look_backs IS
    'The first UTC day of each symbol that a schedule has ever looked after.';

CREATE TABLE trading_pipelines.database_sizes (
    measured_at timestamptz PRIMARY KEY,
    market_bytes bigint NOT NULL,
    dagster_bytes bigint NOT NULL
);
COMMENT ON TABLE trading_pipelines.database_sizes IS
    'Sizes of the market database and of Dagster''s storage, one row a housekeeping.';
"""


def upgrade() -> None:
    """Add the columns and the table."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take away what was added; what was left failed is tried again."""
    for table, columns in {
        "candle_coverage": ["left_failed", "left_at", "trouble", "tries"],
        "signal_coverage": ["left_failed", "failed_inputs"],
    }.items():
        for column in columns:
            op.drop_column(table, column, schema="trading_pipelines")
    op.drop_index("idx_alert_deliveries_digest", schema="trading_pipelines")
    for table in ("database_sizes", "look_backs"):
        op.drop_table(table, schema="trading_pipelines")
