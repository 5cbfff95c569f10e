"""What left the site for a federation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_crossings"
down_revision = "0003_flights"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; nothing has left yet."""
    op.create_table(
        "crossings",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_crossings_time_ns", "crossings", ["time_ns"])


def downgrade() -> None:
    """Forget what has left."""
    op.drop_table("crossings")
