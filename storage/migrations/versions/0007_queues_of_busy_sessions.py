"""Queues of busy sessions: their order, their depth, and sessions that are paused."""

import sqlalchemy as sa
from alembic import op

revision = "0007_queues"
down_revision = "0006_threads"
branch_labels = None
depends_on = None

_PENDING = sa.column("processed_at").is_(None)
_QUEUED = sa.column("status") == sa.literal_column("'queued'")

_FIRST_MESSAGE = "FROM events WHERE events.run_id = runs.id AND events.type = 'user.message'"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("queue_depth", sa.Integer(), nullable=False, server_default="20"))
    op.add_column("sessions", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("events", sa.Column("for_run_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("queue_position", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("input_event_id", sa.String(), nullable=True))
    op.execute(
        f"UPDATE runs SET queue_position = COALESCE((SELECT MIN(seq) {_FIRST_MESSAGE}), 0),"
        f" input_event_id = (SELECT id {_FIRST_MESSAGE} ORDER BY seq LIMIT 1) WHERE status = 'queued'"
    )
    columns = ["session_id", "queue_position", "created_at", "id"]
    op.create_index("ix_runs_queue", "runs", columns, sqlite_where=_QUEUED, postgresql_where=_QUEUED)
    op.drop_index("ix_events_pending", "events")
    op.create_index("ix_events_pending", "events", ["session_id", "type"], sqlite_where=_PENDING, postgresql_where=_PENDING)


def downgrade() -> None:
    op.drop_index("ix_events_pending", "events")
    op.create_index("ix_events_pending", "events", ["run_id"], sqlite_where=_PENDING, postgresql_where=_PENDING)
    op.drop_index("ix_runs_queue", "runs")
    op.drop_column("runs", "input_event_id")
    op.drop_column("runs", "queue_position")
    op.drop_column("events", "for_run_id")
    op.drop_column("sessions", "paused")
    op.drop_column("sessions", "queue_depth")
