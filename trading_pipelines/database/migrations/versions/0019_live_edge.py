"""The live edge: what the exchange's stream has shown, and how its reader does.

Revision ID: 0019
"""

from alembic import op
from sqlalchemy import text

revision = "0019"
down_revision = "0018"

SCHEMA = """
ALTER TABLE trading_pipelines.candle_coverage
    ADD COLUMN provisional_until timestamptz,
    ADD COLUMN streamed integer NOT NULL DEFAULT 0,
    ADD COLUMN late integer NOT NULL DEFAULT 0,
    ADD COLUMN corrected integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN trading_pipelines.candle_coverage.provisional_until IS
    'the end of the newest minute that was stored as the exchange''s stream had shown it; from '
    'fetched_until on candles are provisional, and a minute without one may still get it';
COMMENT ON COLUMN trading_pipelines.candle_coverage.streamed IS
    'minutes that were first stored as the stream had shown them';
COMMENT ON COLUMN trading_pipelines.candle_coverage.late IS
    'times a minute was rewritten because the stream showed it anew after it had closed';
COMMENT ON COLUMN trading_pipelines.candle_coverage.corrected IS
    'candles of the stream that differed from what the exchange gave when it was asked, and were '
    'replaced';
CREATE TABLE trading_pipelines.live_edge (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    started_at timestamptz NOT NULL,
    connected_since timestamptz,
    last_message_at timestamptz,
    closed_until timestamptz,
    reconnects integer NOT NULL,
    problem text,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE trading_pipelines.live_edge IS
    'How the reader of the exchange''s stream does: one row, of the reader that works or was last.';
COMMENT ON COLUMN trading_pipelines.live_edge.started_at IS 'when the reader began to work';
COMMENT ON COLUMN trading_pipelines.live_edge.connected_since IS
    'since when its connection stands; empty while there is none';
COMMENT ON COLUMN trading_pipelines.live_edge.last_message_at IS
    'when the last candle came, of any symbol';
COMMENT ON COLUMN trading_pipelines.live_edge.closed_until IS
    'by the exchange''s clock: every minute before this that the stream has shown is stored';
COMMENT ON COLUMN trading_pipelines.live_edge.reconnects IS
    'connections since started_at, but for the first';
COMMENT ON COLUMN trading_pipelines.live_edge.problem IS
    'why there is no connection, why nothing can be written, or that the settings switch it off';
COMMENT ON COLUMN trading_pipelines.live_edge.updated_at IS
    'when the reader last said this, every few seconds; the server''s time, as all the others';
"""


def upgrade() -> None:
    """Add the columns and the table."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take them away; the candles stay."""
    op.drop_table("live_edge", schema="trading_pipelines")
    for column in ("provisional_until", "streamed", "late", "corrected"):
        op.drop_column("candle_coverage", column, schema="trading_pipelines")
