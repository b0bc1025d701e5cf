"""What is kept beside the candles: odd rows, unconfirmed candles, revised hours, the clock.

Revision ID: 0010
"""

from alembic import op
from sqlalchemy import text

revision = "0010"
down_revision = "0009"

SCHEMA = """
CREATE TABLE trading_pipelines.set_aside_rows (
    symbol varchar(20) NOT NULL,
    timestamp timestamptz NOT NULL,
    row text NOT NULL,
    reason text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timestamp)
);
COMMENT ON TABLE trading_pipelines.set_aside_rows IS
    'Rows of the exchange''s that can''t be candles, until it gives a sound one for the minute.';
COMMENT ON COLUMN trading_pipelines.set_aside_rows.timestamp IS
    'the minute; of a row that does not say, the one before the next newer row''s';
COMMENT ON COLUMN trading_pipelines.set_aside_rows.row IS 'as it came, as JSON';

CREATE TABLE trading_pipelines.unconfirmed_candles (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol varchar(20) NOT NULL,
    timestamp timestamptz NOT NULL,
    candle jsonb NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE trading_pipelines.unconfirmed_candles IS
    'Candles that were stored in minutes for which the exchange has none: moved here from '
    'market_data when their day was asked for after it had closed.';
COMMENT ON COLUMN trading_pipelines.unconfirmed_candles.candle IS 'the row of market_data';

ALTER TABLE trading_pipelines.candle_coverage ADD COLUMN revised_at timestamptz;
COMMENT ON COLUMN trading_pipelines.candle_coverage.revised_at IS
    'when a candle of an hour that had closed was last inserted or repaired, of an open day';
COMMENT ON COLUMN trading_pipelines.candle_coverage.repaired IS
    'rows that differed from the exchange''s and were replaced or moved away, in the last pass';

CREATE TABLE trading_pipelines.exchange_clocks (
    exchange text PRIMARY KEY,
    ahead interval,
    problem text,
    read_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN trading_pipelines.exchange_clocks.ahead IS
    'how far the exchange''s clock is ahead of ours; empty where it is not believed';
COMMENT ON COLUMN trading_pipelines.exchange_clocks.problem IS
    'why the exchange''s clock is not believed, and ours is used; empty where it is';
COMMENT ON COLUMN trading_pipelines.exchange_clocks.read_at IS
    'when a run last found this, or found it changed';
"""
# As in 0002, but an open day also has a new version when a minute of a closed hour has changed.
INPUT_VERSIONS = """
CREATE OR REPLACE VIEW trading_pipelines.input_versions AS
SELECT 'candles_' || interval AS asset, symbol, day,
    date_trunc('hour', fetched_until, 'UTC') AS computed_until,
    concat_ws(' ', date_trunc('hour', fetched_until, 'UTC'),
        CASE WHEN interval <> '1m' OR status = 'complete' THEN changed_at {revised} END)
        AS version
FROM trading_pipelines.candle_coverage
WHERE fetched_until > day::timestamp AT TIME ZONE 'UTC'
UNION ALL
SELECT asset, symbol, day, computed_until, concat_ws(' ', computed_until, changed_at)
FROM trading_pipelines.signal_coverage
WHERE computed_until IS NOT NULL
"""
PUT_BACK = """
INSERT INTO public.market_data
SELECT row.* FROM trading_pipelines.unconfirmed_candles,
    jsonb_populate_record(NULL::public.market_data, candle) AS row
ORDER BY unconfirmed_candles.id ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    """Add the tables and columns."""
    op.execute(text(SCHEMA))
    op.execute(INPUT_VERSIONS.format(revised="ELSE revised_at"))


def downgrade() -> None:
    """Take away what was added; the candles that were moved away go back."""
    op.execute(PUT_BACK)
    op.execute(INPUT_VERSIONS.format(revised=""))
    for table in ("set_aside_rows", "unconfirmed_candles", "exchange_clocks"):
        op.drop_table(table, schema="trading_pipelines")
    op.drop_column("candle_coverage", "revised_at", schema="trading_pipelines")
