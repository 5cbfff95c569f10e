"""Leases of shards, the collectors that share them, and a shard's accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_shards"
down_revision = "0004_crossings"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; who shares a database fills them."""
    op.create_table(
        "leases",
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("until_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "collectors",
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("seen_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("held", sa.Text, nullable=False),
        sa.Column("pace_ns", sa.BigInteger, nullable=False),
        sa.Column("reached_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "account_hours",
        sa.Column("hour_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Forget who held what, and the accounts of all shards."""
    for table in ("account_hours", "checkpoints", "collectors", "leases"):
        op.drop_table(table)
