"""What the sweeper delivers: answers too, and found by an index."""

import sqlalchemy as sa
from alembic import op

import storage.tables

revision = "0002_asked"
down_revision = "0001_first"
branch_labels = None
depends_on = None

_ASKED = sa.text(
    "finished_at IS NULL AND (pause_requested_at IS NOT NULL OR resume_requested_at IS NOT NULL OR answered_at IS NOT NULL"
    " OR cancel_requested_at IS NOT NULL OR terminate_requested_at IS NOT NULL)"
)


def upgrade() -> None:
    op.add_column("runs", sa.Column("answered_at", storage.tables.UtcDateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("workflow_seen_at", storage.tables.UtcDateTime(timezone=True), nullable=True))
    op.create_index("ix_runs_asked", "runs", ["touched_at", "id"], sqlite_where=_ASKED, postgresql_where=_ASKED)


def downgrade() -> None:
    op.drop_index("ix_runs_asked", "runs")
    op.drop_column("runs", "workflow_seen_at")
    op.drop_column("runs", "answered_at")
