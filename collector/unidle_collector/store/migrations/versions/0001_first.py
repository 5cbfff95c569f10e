"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From an empty database."""
    op.create_table(
        "incidents",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("opened_ns", sa.BigInteger, nullable=False),
        sa.Column("resolved_ns", sa.BigInteger),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("incidents_state_opened", "incidents", ["state", "opened_ns"])
    op.create_table(
        "incident_events",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("incident_id", sa.Text, nullable=False, index=True),
        sa.Column("document", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sequences",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("boot", sa.Text, primary_key=True),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.Column("ranges", sa.Text, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "facts",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("boot", sa.Text, primary_key=True),
        sa.Column("facts_id", sa.Text, primary_key=True),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "hours",
        sa.Column("hour_start_ns", sa.BigInteger, primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("gpu", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """There is nothing before the first tables."""
    raise RuntimeError("expected a newer database: there is no version before 0001")
