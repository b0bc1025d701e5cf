"""The bot's tables as the bot of today makes them, and a market_data that its set-up can finish on.

The bot fails at each loop without the counts of daily_risk_state, and its set-up adds its key to
market_data whatever is there: on a database that we had made first it stopped at ours of the same
name. So ours has a name of its own until the bot's is there (`database/connection.py`).
The bot's own migrations add columns where they are missing, as this does: either may be first.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"

NEWER_COLUMNS = {
    "trading_history": {
        "regime": "varchar(10)",
        "high_water_mark": "numeric(20, 8)",
        "exit_reason": "varchar(30)",
        "post_exit_prices": "jsonb",
    },
    "daily_risk_state": {
        "buy_count": "integer NOT NULL DEFAULT 0",
        "sell_count": "integer NOT NULL DEFAULT 0",
    },
    "agent_decisions": {
        "price_at_decision": "numeric(20, 8)",
        "regime": "varchar(10)",
    },
}
# Asked first: ADD COLUMN IF NOT EXISTS waits for the table where it has nothing to do, too. Only a
# table's owner may add a column: elsewhere the bot's own migration does.
ADD = """
DO $$ BEGIN
    IF {names} <@ (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = 'public.{table}'::regclass AND NOT attisdropped)
    THEN
        RETURN;
    END IF;
    ALTER TABLE public.{table} {columns};
EXCEPTION WHEN insufficient_privilege OR wrong_object_type THEN
    RAISE NOTICE '{table} belongs to another role or is no table: no columns were added to it';
END $$
"""
# It is ours by its index, which the bot calls otherwise; the bot makes the other three.
RENAME_KEY = """
DO $$ BEGIN
    IF to_regclass('public.idx_market_data_symbol_interval_ts') IS NOT NULL
        AND coalesce(to_regclass('public.agent_memory'), to_regclass('public.positions'),
            to_regclass('public.account_state')) IS NULL
        AND EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'public.market_data'::regclass
            AND conname = 'uq_market_data_symbol_interval_ts')
    THEN
        ALTER TABLE public.market_data RENAME CONSTRAINT uq_market_data_symbol_interval_ts
            TO market_data_symbol_interval_timestamp_key;
    END IF;
END $$
"""

NAME_KEY_AS_BEFORE = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'public.market_data'::regclass
        AND conname = 'market_data_symbol_interval_timestamp_key')
        AND to_regclass('public.uq_market_data_symbol_interval_ts') IS NULL
    THEN
        ALTER TABLE public.market_data RENAME CONSTRAINT market_data_symbol_interval_timestamp_key
            TO uq_market_data_symbol_interval_ts;
    END IF;
END $$
"""


def upgrade() -> None:
    """Add what is missing, and give the key of our own market_data its own name."""
    for table, columns in NEWER_COLUMNS.items():
        added = ", ".join(
            f"ADD COLUMN IF NOT EXISTS {name} {kind}" for name, kind in columns.items()
        )
        op.execute(ADD.format(table=table, names=f"ARRAY{list(columns)}", columns=added))
    op.execute(RENAME_KEY)


def downgrade() -> None:
    """Give our key the bot's name again, where the bot has none; the columns stay the bot's."""
    op.execute(NAME_KEY_AS_BEFORE)
