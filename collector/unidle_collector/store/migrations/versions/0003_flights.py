"""What the flight recorders of the nodes sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_flights"
down_revision = "0002_tokens"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "flights",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("gpu", sa.Text, nullable=False),
        sa.Column("start_ns", sa.BigInteger, nullable=False),
        sa.Column("end_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_index("flights_gpu_end", "flights", ["gpu", "end_ns"])
    op.create_index("flights_end", "flights", ["end_ns"])


def downgrade() -> None:
    """Without it."""
    op.drop_table("flights")
