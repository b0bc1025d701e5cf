"""By which settings each symbol is looked after, and which days earlier settings left behind.

Revision ID: 0013
"""

from alembic import op
from sqlalchemy import text

revision = "0013"
down_revision = "0012"

SCHEMA = """
ALTER TABLE trading_pipelines.look_backs
    ADD COLUMN IF NOT EXISTS start_date date,
    ADD COLUMN IF NOT EXISTS look_back_days int,
    ADD COLUMN IF NOT EXISTS is_dropped boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS left_behind datemultirange NOT NULL DEFAULT '{}';
COMMENT ON TABLE trading_pipelines.look_backs IS
    'Which UTC days of each symbol a schedule looks after or has looked after.';
COMMENT ON COLUMN trading_pipelines.look_backs.first_day IS
    'The first day of the look-back when these settings came into use.';
COMMENT ON COLUMN trading_pipelines.look_backs.start_date IS
    'data.start_date of the settings in use; empty before schema 0013.';
COMMENT ON COLUMN trading_pipelines.look_backs.look_back_days IS
    'data.look_back_days of the settings in use; empty before schema 0013.';
COMMENT ON COLUMN trading_pipelines.look_backs.is_dropped IS
    'The settings in use do not name the symbol.';
COMMENT ON COLUMN trading_pipelines.look_backs.left_behind IS
    'The days that left the look-back by time while earlier settings were in use.';
"""


def upgrade() -> None:
    """Add the columns."""
    op.execute(text(SCHEMA))


def downgrade() -> None:
    """Take them away."""
    for column in ("start_date", "look_back_days", "is_dropped", "left_behind"):
        op.drop_column("look_backs", column, schema="trading_pipelines")
