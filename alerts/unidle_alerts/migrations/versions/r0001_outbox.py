"""The outbox, its channels, the place in the collector's log, and the log of deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "cursor",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("mark", sa.String, nullable=False),
    )
    op.create_table(
        "channel",
        sa.Column("destination", sa.String, primary_key=True),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
        sa.Column("not_before_ns", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("delivered", sa.Integer, nullable=False),
        sa.Column("retried", sa.Integer, nullable=False),
        sa.Column("dead", sa.Integer, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("destination", sa.String, nullable=False),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("recorded_ns", sa.BigInteger, nullable=False),
        sa.Column("done_ns", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("severity", sa.String, nullable=False),
        sa.Column("eur_per_h", sa.Float),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.UniqueConstraint("destination", "key", name="outbox_once"),
    )
    op.create_index("outbox_by_status", "outbox", ["destination", "status"])
    op.create_index("outbox_by_incident", "outbox", ["destination", "incident_id"])
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("destination", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("incidents", sa.Integer, nullable=False),
        sa.Column("crowded", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )
    op.create_index("delivery_by_time", "delivery", ["destination", "time_ns"])
