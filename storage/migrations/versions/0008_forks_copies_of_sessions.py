"""Forks and imports: sessions whose log is a copy."""

import sqlalchemy as sa
from alembic import op

revision = "0008_forks"
down_revision = "0007_queues"
branch_labels = None
depends_on = None

_FORKED = sa.column("forked_from_id").is_not(None)


def upgrade() -> None:
    for name in ("forked_from_id", "forked_from_event_id", "forked_before_event_id"):
        op.add_column("sessions", sa.Column(name, sa.String(), nullable=True))
    op.add_column("runs", sa.Column("copied_from", sa.String(), nullable=True))
    columns = ["forked_from_id", "created_at", "id"]
    op.create_index("ix_sessions_forked_from_id", "sessions", columns, sqlite_where=_FORKED, postgresql_where=_FORKED)


def downgrade() -> None:
    op.drop_index("ix_sessions_forked_from_id", "sessions")
    op.drop_column("runs", "copied_from")
    for name in ("forked_before_event_id", "forked_from_event_id", "forked_from_id"):
        op.drop_column("sessions", name)
