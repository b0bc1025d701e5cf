"""The queries of an inspection; read-only, each named for what it returns."""

COLUMNS = """
SELECT relation, relkind::text AS kind, pg_has_role(relowner, 'USAGE') AS is_owner,
    attname::text AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS is_needed,
    atthasdef OR attidentity <> '' AS is_filled
FROM unnest(%s::text[]) AS relation
JOIN pg_class ON pg_class.oid = to_regclass('public.' || relation)
LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
"""
# As 0001 looks for its key; a deferrable or invalid one is of no use to ON CONFLICT, nor to a
# foreign key.
KEYS = """
SELECT indexrelid::regclass::text AS name, indimmediate AND indisvalid AS is_usable
FROM pg_index WHERE indrelid = to_regclass('public.' || %s) AND indisunique AND indpred IS NULL
    AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
         WHERE attrelid = indrelid AND attnum = ANY (indkey)) = %s
ORDER BY 2 DESC
"""
# What stands between a write and the rows that are read afterwards. TimescaleDB keeps its chunks as
# children, and its own trigger on their parent.
STORAGE = """
SELECT relkind = 'p' AS is_partitioned,
    partstrat IS DISTINCT FROM 'h' AND partdefid = 0 AS lacks_default,
    EXISTS (SELECT FROM unnest(partattrs::int2[]) AS number WHERE number NOT IN (
        SELECT attnum FROM pg_attribute
        WHERE attrelid = pg_class.oid AND attname IN ('symbol', 'interval', 'timestamp')))
        AS is_keyless,
    EXISTS (SELECT FROM pg_partition_tree(pg_class.oid) AS part JOIN pg_class AS leaf
        ON leaf.oid = part.relid WHERE leaf.relkind = 'f') AS has_foreign_parts,
    relkind = 'r' AND EXISTS (SELECT FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
        WHERE inhparent = pg_class.oid
            AND child.relnamespace::regnamespace::text <> '_timescaledb_internal') AS has_heirs,
    ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = pg_class.oid AND NOT tgisinternal
        AND tgenabled <> 'D' AND tgname <> 'ts_insert_blocker' ORDER BY 1) AS triggers,
    ARRAY(SELECT quote_ident(rulename) FROM pg_rewrite WHERE ev_class = pg_class.oid
        AND ev_type <> '1' AND ev_enabled <> 'D' ORDER BY 1) AS rules,
    row_security_active(pg_class.oid) AS hides_rows
FROM pg_class LEFT JOIN pg_partitioned_table ON partrelid = pg_class.oid
WHERE pg_class.oid = to_regclass('public.' || %s)
"""
OURS = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace('trading_pipelines') AND relkind <> 'i' ORDER BY 1
"""
MISSING = """
SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass('public.' || name) IS NULL ORDER BY 1
"""
ROLE = """
SELECT quote_ident(current_user) AS name, quote_ident(current_database()) AS database,
    has_database_privilege(current_database(), 'CREATE') AS creates_schemas,
    has_schema_privilege('public', 'CREATE') AS creates_in_public,
    (SELECT has_schema_privilege(oid, 'CREATE') AND pg_has_role(nspowner, 'USAGE')
     FROM pg_namespace WHERE nspname = 'trading_pipelines') AS owns_ours,
    (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user)
        AS creates_databases,
    EXISTS (SELECT FROM pg_database WHERE datname = %s) AS has_storage
"""
MAY = """
SELECT privilege, has_table_privilege('public.' || %(table)s, privilege) AS is_granted
FROM unnest(%(privileges)s::text[]) AS privilege
UNION ALL
SELECT 'USAGE ON SEQUENCE ' || sequence, has_sequence_privilege(sequence, 'USAGE')
FROM pg_attribute, LATERAL (SELECT CASE WHEN 'INSERT' = ANY (%(privileges)s)
    THEN pg_get_serial_sequence('public.' || %(table)s, 'id') END) AS numbers (sequence)
WHERE attrelid = to_regclass('public.' || %(table)s) AND attname = 'id' AND attidentity = ''
    AND sequence IS NOT NULL
"""
# Upbit opened in 2017. Python has no infinity, and a candle of the year 9999 no end to its hole.
STRAYS = """
SELECT symbol, count(*) AS rows FROM public.market_data
WHERE timestamp NOT BETWEEN '2000-01-01Z' AND '2100-01-01Z' GROUP BY 1 ORDER BY 1
"""
FUTURE = """
SELECT symbol, count(*) AS rows, min(timestamp) AS first, max(timestamp) AS last
FROM public.market_data
WHERE interval = '1m' AND symbol = ANY(%(symbols)s) AND timestamp > %(now)s GROUP BY 1 ORDER BY 1
"""
# The medians of each hour's share of its day's volume, in weeks from the first candle on; of days
# with a candle in every hour, and of weeks with enough of them.
HOURLY_SHARES = """
SELECT symbol, array_agg(DISTINCT days) AS days, array_agg(share ORDER BY hour) AS shares
FROM (
    SELECT symbol, week, hour, percentile_cont(0.5) WITHIN GROUP (ORDER BY share) AS share,
        array_agg(day ORDER BY day) AS days
    FROM (
        SELECT symbol, day, hour, (day - min(day) OVER (PARTITION BY symbol)) / 7 AS week,
            volume / nullif(sum(volume) OVER of_day, 0) AS share, count(*) OVER of_day AS hours
        FROM (
            SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
                extract(hour FROM timestamp AT TIME ZONE 'UTC')::int AS hour,
                sum(volume)::double precision AS volume
            FROM public.market_data
            WHERE interval = '1m' AND symbol = ANY(%s) AND volume < 'NaN' GROUP BY 1, 2, 3
        ) AS of_hours
        WINDOW of_day AS (PARTITION BY symbol, day)
    ) AS shares
    WHERE hours = 24 AND share IS NOT NULL GROUP BY symbol, week, hour
) AS medians
GROUP BY symbol, week HAVING min(cardinality(days)) >= 4 AND count(*) = 24
"""
TOTALS = """
SELECT symbol, interval, count(*), min(timestamp), max(timestamp) FROM public.market_data
GROUP BY 1, 2 ORDER BY 1, 2
"""
DOUBLES = """
SELECT coalesce(sum(rows - 1), 0)::bigint FROM (
    SELECT count(*) AS rows FROM public.market_data GROUP BY symbol, interval, timestamp
    HAVING count(*) > 1) AS doubled
"""
HOLES = """
SELECT symbol, at + interval '1 minute', next_at FROM (
    SELECT symbol, timestamp AS at,
        lead(timestamp) OVER (PARTITION BY symbol ORDER BY timestamp) AS next_at
    FROM public.market_data
    WHERE interval = '1m' AND symbol = ANY(%s) AND timestamp = date_trunc('minute', timestamp)
) AS minutes
WHERE next_at > at + interval '1 minute' ORDER BY 1, 2
"""
# NaN, which numeric can hold, is above every number.
DAYS = """
SELECT symbol, (at AT TIME ZONE 'UTC')::date AS day,
    count(*) FILTER (WHERE NOT is_aligned) AS misaligned,
    count(*) FILTER (WHERE NOT is_possible) AS impossible,
    count(*) FILTER (WHERE is_early) AS early,
    count(*) FILTER (WHERE is_joined) AS pairs,
    sum(abs(next_open - close_price)) FILTER (WHERE is_joined)
        > sum(abs(close_price - open_price)) FILTER (WHERE is_joined) AS is_torn
FROM (
    SELECT *, is_possible AND next_at = at + interval '1 minute' AND next_open < 'NaN' AS is_joined
    FROM (
        SELECT symbol, timestamp AS at, open_price, close_price,
            timestamp = date_trunc('minute', timestamp) AS is_aligned,
            0 < low_price AND low_price <= least(open_price, close_price)
                AND greatest(open_price, close_price) <= high_price AND high_price < 'NaN'
                AND 0 <= volume AND volume < 'NaN' AS is_possible,
            {early} AS is_early,
            lead(timestamp) OVER coming AS next_at, lead(open_price) OVER coming AS next_open
        FROM public.market_data WHERE interval = '1m' AND symbol = ANY(%s)
        WINDOW coming AS (PARTITION BY symbol ORDER BY timestamp)
    ) AS candles
) AS followed
GROUP BY 1, 2 ORDER BY 1, 2
"""
# Asked for whole after the day had closed: what is missing there is quiet, what is there is whole.
SETTLED = """
SELECT symbol, day FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND status = 'complete'
"""
# Ours are at the full hour, beside the bot's own of that minute.
REGIMES = """
SELECT coin_symbol AS symbol, count(*) FILTER (WHERE rows > 1) AS minutes,
    sum(rows) FILTER (WHERE moment IS NULL) AS timeless
FROM (
    SELECT coin_symbol, date_trunc('minute', detected_at) AS moment, count(*) AS rows
    FROM public.regime_history WHERE {theirs} GROUP BY 1, 2
) AS minutes GROUP BY 1 ORDER BY 1
"""
NOT_OURS = "id NOT IN (SELECT history_id FROM trading_pipelines.regime_labels WHERE history_id > 0)"
HYPERTABLE = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS version,
    compression_enabled AS is_compressing,
    (SELECT max(config->>'compress_after') FROM timescaledb_information.jobs
     WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data'
        AND config ? 'compress_after') AS compress_after
FROM timescaledb_information.hypertables
WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data'
"""
COMPRESSED = """
SELECT format('%I.%I', chunk_schema, chunk_name), range_start, range_end
FROM timescaledb_information.chunks
WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data' AND is_compressed
ORDER BY 2
"""
