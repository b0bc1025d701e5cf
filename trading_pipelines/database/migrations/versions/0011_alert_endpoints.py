"""Where alerts are posted, when that is in trouble: since when, until when it rests, what helps.

Revision ID: 0011
"""

from alembic import op
from sqlalchemy import text

revision = "0011"
down_revision = "0010"

SCHEMA = """
CREATE TABLE trading_pipelines.alert_endpoints (
    name text PRIMARY KEY,
    address text NOT NULL,
    trouble text NOT NULL CHECK (trouble IN ('broken', 'limited')),
    since timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    rests integer NOT NULL DEFAULT 0,
    status smallint,
    answer text NOT NULL,
    advice text NOT NULL,
    mended_at timestamptz
);
COMMENT ON TABLE trading_pipelines.alert_endpoints IS
    'Discord''s webhook and n8n''s, once each was in trouble: its alerts wait until it is mended.';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.name IS
    'discord, by whichever way it is posted to, or n8n/ and a channel';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.address IS
    'a hash of what was set when it answered so: with another the trouble is over';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.trouble IS
    'broken: it refuses whatever is posted; limited: it asks for a rest (429)';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.next_at IS
    'one alert is posted then, and tells whether it is mended';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.rests IS
    'rests in a row that were asked for without saying how long';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.status IS 'the HTTP status of its last answer';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.advice IS 'what the operator can do';
COMMENT ON COLUMN trading_pipelines.alert_endpoints.mended_at IS 'empty while it is in trouble';
"""


def upgrade() -> None:
    """Add the table."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take it away."""
    op.drop_table("alert_endpoints", schema="trading_pipelines")
