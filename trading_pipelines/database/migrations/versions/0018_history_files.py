"""What became of the history file of each symbol's day.

Revision ID: 0018
"""

from alembic import op
from sqlalchemy import text

revision = "0018"
down_revision = "0017"

SCHEMA = """
CREATE TABLE trading_pipelines.history_files (
    symbol varchar(20) NOT NULL,
    day date NOT NULL,
    name text,
    sha256 text,
    not_used text,
    comparison jsonb,
    replaced_at timestamptz,
    read_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, day)
);
COMMENT ON TABLE trading_pipelines.history_files IS
    'What became of the history file of each UTC day that was asked for while those were read.';
COMMENT ON COLUMN trading_pipelines.history_files.name IS
    'the file, of the day or of its month, whose candles were read last';
COMMENT ON COLUMN trading_pipelines.history_files.sha256 IS 'its checksum, in hex';
COMMENT ON COLUMN trading_pipelines.history_files.not_used IS
    'why the day came from the exchange in its place; empty where it came from the file';
COMMENT ON COLUMN trading_pipelines.history_files.comparison IS
    'of a sample: how the file''s candles differ from the exchange''s, as db adopt --compare '
    'counts; or why the exchange could not be asked';
COMMENT ON COLUMN trading_pipelines.history_files.replaced_at IS
    'when the same file was last found with another checksum than before';
COMMENT ON COLUMN trading_pipelines.history_files.read_at IS 'when the day was asked for';
"""


def upgrade() -> None:
    """Add the table."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take it away."""
    op.drop_table("history_files", schema="trading_pipelines")
