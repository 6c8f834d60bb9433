"""Threads: the runs of sub-agents beside the session's own."""

import sqlalchemy as sa
from alembic import op

revision = "0006_threads"
down_revision = "0005_artifacts"
branch_labels = None
depends_on = None

_SUBAGENT = sa.column("parent_run_id").is_not(None)


def upgrade() -> None:
    op.add_column("events", sa.Column("thread_id", sa.String(), nullable=True))
    op.add_column("approvals", sa.Column("thread_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("thread_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("depth_left", sa.Integer(), nullable=True))
    columns = ["parent_run_id", "created_at", "id"]
    op.create_index("ix_runs_parent_run_id", "runs", columns, sqlite_where=_SUBAGENT, postgresql_where=_SUBAGENT)


def downgrade() -> None:
    op.drop_index("ix_runs_parent_run_id", "runs")
    op.drop_column("runs", "depth_left")
    op.drop_column("runs", "thread_id")
    op.drop_column("approvals", "thread_id")
    op.drop_column("events", "thread_id")
