"""Provenance: by which settings and which code a partition of signals was made.

Revision ID: 0012
"""

from alembic import op
from sqlalchemy import text

revision = "0012"
down_revision = "0011"

# Without a default: what was made before this is not known, and is not said to be of old settings.
SCHEMA = """
CREATE TABLE trading_pipelines.signal_settings (
    asset text NOT NULL,
    digest text NOT NULL,
    settings jsonb NOT NULL,
    first_used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (asset, digest)
);
COMMENT ON TABLE trading_pipelines.signal_settings IS
    'The settings that matter to the rows of an asset, each set of them that was ever used.';
COMMENT ON COLUMN trading_pipelines.signal_settings.digest IS
    'of the settings, as in signal_coverage.settings_digest';
COMMENT ON COLUMN trading_pipelines.signal_settings.settings IS
    'by their names in config/strategy.yaml';

ALTER TABLE trading_pipelines.signal_coverage
    ADD COLUMN settings_digest text, ADD COLUMN code_version text, ADD COLUMN rows_digest text,
    ADD COLUMN computed_at timestamptz, ADD COLUMN computed_by text;
COMMENT ON COLUMN trading_pipelines.signal_coverage.settings_digest IS
    'of the settings that it was made by: a row of signal_settings; empty before 0012';
COMMENT ON COLUMN trading_pipelines.signal_coverage.code_version IS
    'version of the computation that made it; empty before 0012';
COMMENT ON COLUMN trading_pipelines.signal_coverage.rows_digest IS
    'of its rows as they were written: equal rows have an equal one; empty before 0012';
COMMENT ON COLUMN trading_pipelines.signal_coverage.computed_at IS
    'when it was last computed, with or without a change; empty before 0012';
COMMENT ON COLUMN trading_pipelines.signal_coverage.computed_by IS
    'the Dagster root run that last computed it; empty before 0012'
"""


def upgrade() -> None:
    """Add the table and the columns."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take away what was added: the rows of the signals stay, not what they were made by."""
    op.drop_table("signal_settings", schema="trading_pipelines")
    for column in ("settings_digest", "code_version", "rows_digest", "computed_at", "computed_by"):
        op.drop_column("signal_coverage", column, schema="trading_pipelines")
