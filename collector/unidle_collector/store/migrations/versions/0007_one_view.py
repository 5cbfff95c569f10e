"""Parts of a site's incidents by shard, and how many nodes and GPUs a shard has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_one_view"
down_revision = "0006_no_hours"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the columns; checkpoints of before hold 0 until they are written anew."""
    op.create_table(
        "incident_parts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("incident_id", sa.Text, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("incident_parts_incident", "incident_parts", ["incident_id"])
    for name in ("nodes", "gpus"):
        op.add_column("checkpoints", sa.Column(name, sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Without them."""
    for name in ("gpus", "nodes"):
        op.drop_column("checkpoints", name)
    op.drop_index("incident_parts_incident", "incident_parts")
    op.drop_table("incident_parts")
