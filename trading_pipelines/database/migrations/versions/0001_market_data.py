"""Market data: the bot's candle table, coverage, hourly candles and the request slots.

Revision ID: 0001
"""

from alembic import op
from sqlalchemy import text

from trading_pipelines.errors import OperatorError

revision = "0001"
down_revision = None

# The contract: the bot's own DDL, made only where the bot has not made it.
MARKET_DATA = """
CREATE TABLE public.market_data (
    id bigserial NOT NULL,
    symbol varchar(20) NOT NULL,
    interval varchar(10) NOT NULL,
    open_price numeric(20, 8) NOT NULL,
    high_price numeric(20, 8) NOT NULL,
    low_price numeric(20, 8) NOT NULL,
    close_price numeric(20, 8) NOT NULL,
    volume numeric(20, 8) NOT NULL,
    timestamp timestamptz NOT NULL,
    PRIMARY KEY (timestamp, id)
)
"""
ADD_INDEX = """
CREATE INDEX idx_market_data_symbol_interval_ts
    ON public.market_data (symbol, interval, timestamp DESC)
"""
ADD_KEY = """
ALTER TABLE public.market_data ADD CONSTRAINT uq_market_data_symbol_interval_ts
    UNIQUE (symbol, interval, timestamp)
"""

KIND = "SELECT relkind::text FROM pg_class WHERE oid = to_regclass('public.market_data')"
KEY_EXISTS = """
SELECT EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = 'public.market_data'::regclass AND i.indisunique AND i.indpred IS NULL
      AND (SELECT array_agg(a.attname::text ORDER BY a.attname)
           FROM pg_attribute AS a
           WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey))
          = ARRAY['interval', 'symbol', 'timestamp']
)
"""
# The oldest databases lack the unique key and may hold doubles. They are moved, not deleted; of a
# double the row written last stays, because the first one written was the minute still forming.
MOVE_DOUBLES = """
CREATE TABLE trading_pipelines.market_data_doubles AS
SELECT candle.* FROM public.market_data AS candle JOIN (
    SELECT timestamp, id, row_number() OVER (
        PARTITION BY symbol, interval, timestamp ORDER BY id DESC) AS place
    FROM public.market_data
) AS ranked USING (timestamp, id)
WHERE place > 1
"""
DELETE_DOUBLES = """
DELETE FROM public.market_data AS kept USING trading_pipelines.market_data_doubles AS moved
WHERE kept.timestamp = moved.timestamp AND kept.id = moved.id
"""

CANDLE_COVERAGE = """
CREATE TABLE trading_pipelines.candle_coverage (
    symbol varchar(20) NOT NULL,
    interval varchar(10) NOT NULL,
    day date NOT NULL,
    status text NOT NULL CHECK (status IN ('partial', 'complete', 'failed')),
    fetched_until timestamptz NOT NULL,
    confirmed_until timestamptz NOT NULL,
    rows integer NOT NULL DEFAULT 0,
    quiet integer NOT NULL DEFAULT 0,
    repaired integer NOT NULL DEFAULT 0,
    requests integer NOT NULL DEFAULT 0,
    waits integer NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    source text,
    run_id text,
    changed_at timestamptz NOT NULL DEFAULT now(),
    computed_from timestamptz,
    failures integer NOT NULL DEFAULT 0,
    error text,
    retry_at timestamptz,
    PRIMARY KEY (symbol, interval, day)
)
"""
COMMENTS = {
    "day": "the UTC day",
    "status": "complete: asked for whole after the day had closed",
    "fetched_until": "every minute of the day before this was asked for",
    "confirmed_until": "every minute of the day before this was asked for after the day had closed",
    "rows": "candles stored for the day",
    "quiet": "intervals asked for in which nothing was traded",
    "repaired": "rows that differed from the exchange's and were replaced, in the last pass",
    "requests": "requests of the last pass",
    "waits": "times the last pass was refused or failed and waited",
    "seconds": "wall time of the last pass",
    "source": "where the candles come from: upbit, or the label of a replayed market",
    "run_id": "the Dagster root run of the last pass",
    "changed_at": "when a candle of the day was last inserted or repaired",
    "computed_from": "for computed intervals: changed_at of the candles they were computed from",
    "failures": "failed attempts since the last good one",
    "retry_at": "after a failure: not asked again by the schedule before this",
}

CANDLES_1H = """
CREATE TABLE trading_pipelines.candles_1h (
    symbol varchar(20) NOT NULL,
    timestamp timestamptz NOT NULL,
    open_price numeric(20, 8) NOT NULL,
    high_price numeric(20, 8) NOT NULL,
    low_price numeric(20, 8) NOT NULL,
    close_price numeric(20, 8) NOT NULL,
    volume numeric(28, 8) NOT NULL,
    minutes smallint NOT NULL CHECK (minutes BETWEEN 1 AND 60),
    PRIMARY KEY (symbol, timestamp)
)
"""

REQUEST_SLOTS = """
CREATE TABLE trading_pipelines.request_slots (
    exchange text PRIMARY KEY,
    next_at timestamptz NOT NULL DEFAULT 'epoch',
    recent timestamptz[] NOT NULL DEFAULT '{}',
    blocked_until timestamptz NOT NULL DEFAULT 'epoch',
    blocks integer NOT NULL DEFAULT 0
)
"""


def upgrade() -> None:
    """Adopt or create the bot's table, create ours."""
    bind = op.get_bind()
    kind = bind.execute(text(KIND)).scalar()
    if kind not in (None, "r", "p"):
        raise OperatorError(
            "public.market_data is no table: `trading-pipelines db adopt` says what to do"
        )
    if kind is None:
        for statement in (MARKET_DATA, ADD_KEY, ADD_INDEX):
            op.execute(statement)
    elif not bind.execute(text(KEY_EXISTS)).scalar():
        for statement in (MOVE_DOUBLES, DELETE_DOUBLES, ADD_KEY):
            op.execute(statement)
    op.execute(CANDLE_COVERAGE)
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.candle_coverage.{column} IS '{quoted}'")
    op.execute(CANDLES_1H)
    op.execute(REQUEST_SLOTS)


def downgrade() -> None:
    """Refuse: the tables hold what a download of days has brought; restore a backup instead."""
    raise NotImplementedError("there is no way back from 0001: restore a backup")
