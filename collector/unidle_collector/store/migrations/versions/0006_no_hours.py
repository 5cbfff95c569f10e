"""Accounts by hour are Parquet files beside the database; nothing ever wrote this table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_no_hours"
down_revision = "0005_shards"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Remove the table."""
    op.drop_table("hours")


def downgrade() -> None:
    """With the empty table."""
    op.create_table(
        "hours",
        sa.Column("hour_start_ns", sa.BigInteger, primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("gpu", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
