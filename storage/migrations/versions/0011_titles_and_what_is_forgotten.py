"""Who is to name a session, and workflows whose histories are to be deleted."""

import sqlalchemy as sa
from alembic import op

import storage.tables

revision = "0011_titles"
down_revision = "0010_search"
branch_labels = None
depends_on = None

_DUE = sa.text("titling = 'due'")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("titling", sa.String(), nullable=True))
    op.create_index("ix_sessions_title_due", "sessions", ["id"], sqlite_where=_DUE, postgresql_where=_DUE)
    op.create_table(
        "forgotten_workflows",
        sa.Column("workflow_id", sa.String(), nullable=False),
        sa.Column("created_at", storage.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("due_at", storage.tables.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", name=op.f("pk_forgotten_workflows")),
    )
    op.create_index("ix_forgotten_workflows_due_at", "forgotten_workflows", ["due_at", "workflow_id"])


def downgrade() -> None:
    op.drop_index("ix_forgotten_workflows_due_at", "forgotten_workflows")
    op.drop_table("forgotten_workflows")
    op.drop_index("ix_sessions_title_due", "sessions")
    op.drop_column("sessions", "titling")
