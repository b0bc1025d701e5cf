"""Views of the bot's tables in Korean time, which never stand in the way of the bot's migrations.

A view on a table keeps its owner from changing the type of a column or dropping it, and does not
see a column that comes later. So each of these is a view on a function whose body is a string: what
it reads is looked up when it is read. The planner inlines it, so a condition on the view still
finds the table's indexes.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"

VIEWS = (
    "trade_history_kst",
    "agent_decisions_kst",
    "risk_audit_kst",
    "daily_risk_state_kst",
    "risk_log_kst",
)

# The body says every name and type, so it alone tells whether a view is as its table is. Without
# their lengths: the bot widens a varchar, and a cast to the old one would cut in silence. A type of
# the bot's own is shown as text: our function would keep the bot from dropping it.
# A body is not checked when it is made: that would wait for a table that the bot is changing.
# Whoever reads a view for long, or has built one on it, keeps it as it was until the next call.
REFRESH = """
CREATE FUNCTION trading_pipelines.refresh_korean_views() RETURNS SETOF text LANGUAGE plpgsql
SET lock_timeout = '2s' SET check_function_bodies = off SET client_min_messages = warning
AS $refresh$
DECLARE
    wanted record;
    granted text;
    commented text;
BEGIN
    PERFORM pg_advisory_xact_lock(7301202);
    FOR wanted IN
        WITH followed (relation, view) AS (VALUES
            ('public.trading_history', 'trade_history_kst'),
            ('public.agent_decisions', 'agent_decisions_kst'),
            ('public.risk_audit', 'risk_audit_kst'),
            ('public.daily_risk_state', 'daily_risk_state_kst')
        ), original AS (
            SELECT relation, view, attnum, attname::text AS name, atttypid::regtype AS type,
                CASE typnamespace WHEN 'pg_catalog'::regnamespace
                    THEN format_type(atttypid, -1) ELSE 'text' END AS shown_as
            FROM followed
            JOIN pg_attribute ON attrelid = to_regclass(relation)
                AND attnum > 0 AND NOT attisdropped
            JOIN pg_type ON pg_type.oid = atttypid
        ), shown AS (
            SELECT relation, view, attnum, name, shown_as, format('told.%I', name) AS value
            FROM original
            UNION ALL
            SELECT relation, view, attnum, name || '_kst', 'timestamp without time zone',
                format('(told.%I AT TIME ZONE ''Asia/Seoul'')', name)
            FROM original AS base WHERE type = 'timestamptz'::regtype AND NOT EXISTS (
                SELECT FROM original AS own
                WHERE own.view = base.view AND own.name = base.name || '_kst')
        ), views AS (
            SELECT view, string_agg(format('%I %s', name, shown_as), ', ' ORDER BY attnum, name)
                    AS columns,
                format('SELECT %s FROM %s AS told', string_agg(
                    format('%s::%s AS %I', value, shown_as, name), ', ' ORDER BY attnum, name
                ), relation) AS body
            FROM shown GROUP BY view, relation
            UNION ALL
            SELECT 'risk_log_kst', $columns$RISK_LOG_COLUMNS$columns$, $body$RISK_LOG$body$
        )
        SELECT view, columns, body, view || '_rows' AS reader,
            to_regclass('trading_pipelines.' || view) AS is_there
        FROM views LEFT JOIN pg_proc
            ON proname = view || '_rows' AND pronamespace = 'trading_pipelines'::regnamespace
        WHERE prosrc IS DISTINCT FROM body OR to_regclass('trading_pipelines.' || view) IS NULL
    LOOP
        BEGIN
            SELECT string_agg(format('GRANT %s ON trading_pipelines.%I TO %s', privilege_type,
                wanted.view, coalesce(nullif(grantee::regrole::text, '-'), 'PUBLIC')), '; ')
            INTO granted FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = wanted.is_there;
            EXECUTE format('DROP VIEW IF EXISTS trading_pipelines.%I', wanted.view);
            EXECUTE format('DROP FUNCTION IF EXISTS trading_pipelines.%I()', wanted.reader);
            EXECUTE format('CREATE FUNCTION trading_pipelines.%I() RETURNS TABLE (%s) '
                'LANGUAGE sql STABLE AS %L', wanted.reader, wanted.columns, wanted.body);
            EXECUTE format('CREATE VIEW trading_pipelines.%I AS SELECT * FROM '
                'trading_pipelines.%I()', wanted.view, wanted.reader);
            SELECT string_agg(format('COMMENT ON COLUMN trading_pipelines.%I.%I IS %L',
                wanted.view, attname, left(attname, -4) || ' in Korean time (Asia/Seoul)'), '; ')
            INTO commented FROM pg_attribute
            WHERE attrelid = to_regclass('trading_pipelines.' || wanted.view)
                AND attname LIKE '%\\_kst';
            EXECUTE concat_ws('; ', commented, granted);
        EXCEPTION
            WHEN lock_not_available OR dependent_objects_still_exist OR insufficient_privilege THEN
                RETURN NEXT format('%s stays as it was: %s', wanted.view, SQLERRM);
        END;
    END LOOP;
EXCEPTION WHEN lock_not_available THEN
    NULL; -- another process is at it
END $refresh$
"""
RISK_LOG_COLUMNS = """
    occurred_at timestamptz, occurred_at_kst timestamp, source text, source_id text, type text,
    level text, message text, symbol text, related_order_id uuid
"""
# The words are those of `alerts/kinds`. A cooldown or a halt is of all symbols, and names none.
RISK_LOG = """
    SELECT audit.timestamp::timestamptz, (audit.timestamp AT TIME ZONE 'Asia/Seoul')::timestamp,
        'risk_audit', audit.id::text, audit.violation_type::text, 'WARNING',
        coalesce(nullif(audit.description, ''), audit.violation_type)::text,
        ordered.symbol::text, audit.related_order_id::uuid
    FROM public.risk_audit AS audit
    LEFT JOIN public.trading_history AS ordered ON ordered.id = audit.related_order_id
    UNION ALL
    SELECT state.updated_at::timestamptz, (state.updated_at AT TIME ZONE 'Asia/Seoul')::timestamp,
        'daily_risk_state', state.date::text, 'COOLDOWN', 'CRITICAL',
        format('연속 손실 %s회: %s KST까지 신규 거래 중지', state.consecutive_losses,
            to_char(state.cooldown_until AT TIME ZONE 'Asia/Seoul', 'YYYY-MM-DD HH24:MI')),
        NULL::text, NULL::uuid
    FROM public.daily_risk_state AS state WHERE state.cooldown_until IS NOT NULL
    UNION ALL
    SELECT state.updated_at::timestamptz, (state.updated_at AT TIME ZONE 'Asia/Seoul')::timestamp,
        'daily_risk_state', state.date::text, 'HALT', 'CRITICAL',
        format('거래 정지: 손익 %s, 거래 %s회, 연속 손실 %s회',
            trim_scale(state.total_pnl::numeric), state.trade_count, state.consecutive_losses),
        NULL::text, NULL::uuid
    FROM public.daily_risk_state AS state WHERE state.is_trading_halted
"""


def upgrade() -> None:
    """Make the function that makes the views; `database.upgrade` calls it each time."""
    body = REFRESH.replace("RISK_LOG_COLUMNS", RISK_LOG_COLUMNS).replace("RISK_LOG", RISK_LOG)
    op.execute(body)


def downgrade() -> None:
    """Take the views away, and what makes them."""
    for view in VIEWS:
        op.execute(f"DROP VIEW IF EXISTS trading_pipelines.{view}")
        op.execute(f"DROP FUNCTION IF EXISTS trading_pipelines.{view}_rows()")
    op.execute("DROP FUNCTION trading_pipelines.refresh_korean_views()")
