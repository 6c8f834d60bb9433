"""An index for every list and every filter, so that a page costs what it shows."""

import sqlalchemy as sa
from alembic import op

revision = "0003_lists"
down_revision = "0002_asked"
branch_labels = None
depends_on = None

_LISTED = sa.column("inline").is_(False)
_OPEN = sa.column("archived_at").is_(None)
_ACTIVE = sa.column("active_run_id").is_not(None)
_PENDING = sa.column("processed_at").is_(None)


def upgrade() -> None:
    op.drop_index("ix_agents_workspace_id_name", "agents")
    _create("ix_agents_listed", "agents", "workspace_id", "created_at", "id", where=_LISTED)
    _create("ix_agents_named", "agents", "workspace_id", "name", "created_at", "id", where=_LISTED)

    _create("ix_sessions_workspace_id_status", "sessions", "workspace_id", "status", "created_at", "id")
    _create("ix_sessions_agent_id_created_at", "sessions", "agent_id", "created_at", "id")
    op.drop_index("ix_sessions_active_run_id", "sessions")
    _create("ix_sessions_active_run_id", "sessions", "active_run_id", where=_ACTIVE)
    _create("ix_sessions_open", "sessions", "workspace_id", "created_at", "id", where=_OPEN)
    _create("ix_sessions_open_status", "sessions", "workspace_id", "status", "created_at", "id", where=_OPEN)
    _create("ix_sessions_open_agent", "sessions", "agent_id", "created_at", "id", where=_OPEN)

    _create("ix_events_pending", "events", "run_id", where=_PENDING)

    op.drop_index("ix_runs_workspace_id_status", "runs")
    _create("ix_runs_workspace_id_status", "runs", "workspace_id", "status", "created_at", "id")
    _create("ix_runs_agent_id_created_at", "runs", "agent_id", "created_at", "id")
    _create("ix_runs_agent_id_status", "runs", "agent_id", "status", "created_at", "id")
    _create("ix_runs_session_id_status", "runs", "session_id", "status", "created_at", "id")


def downgrade() -> None:
    for name in ("session_id_status", "agent_id_status", "agent_id_created_at", "workspace_id_status"):
        op.drop_index(f"ix_runs_{name}", "runs")
    _create("ix_runs_workspace_id_status", "runs", "workspace_id", "status", "created_at")
    op.drop_index("ix_events_pending", "events")
    for name in ("open_agent", "open_status", "open", "agent_id_created_at", "workspace_id_status"):
        op.drop_index(f"ix_sessions_{name}", "sessions")
    op.drop_index("ix_sessions_active_run_id", "sessions")
    _create("ix_sessions_active_run_id", "sessions", "active_run_id")
    op.drop_index("ix_agents_named", "agents")
    op.drop_index("ix_agents_listed", "agents")
    _create("ix_agents_workspace_id_name", "agents", "workspace_id", "name")


def _create(name: str, table: str, *columns: str, where: sa.ColumnElement[bool] | None = None) -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
