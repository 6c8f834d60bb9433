"""Approvals and waits, plans, and permissions of a session."""

import json

import sqlalchemy as sa
from alembic import op

from storage.tables import UtcDateTime

revision = "0004_waits"
down_revision = "0003_lists"
branch_labels = None
depends_on = None

_PENDING = sa.column("status") == sa.literal_column("'pending'")
_OPEN = sa.column("closed_at").is_(None)


def upgrade() -> None:
    op.add_column("runs", sa.Column("plan", sa.JSON(), nullable=True))
    op.add_column("sessions", sa.Column("permissions", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("workspace_id", sa.String(), sa.ForeignKey("workspaces.id"), nullable=False),
        sa.Column("session_id", sa.String(), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("tool_use_id", sa.String(), nullable=False, unique=True),
        sa.Column("tool_name", sa.String(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=False),
        sa.Column("input_schema", sa.JSON(), nullable=False),
        sa.Column("edited_input", sa.JSON(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("remembered", sa.Boolean(), nullable=False),
        sa.Column("on_timeout", sa.String(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=True),
    )
    _create("ix_approvals_workspace_id_created_at", "approvals", "workspace_id", "created_at", "id")
    _create("ix_approvals_workspace_id_status", "approvals", "workspace_id", "status", "created_at", "id")
    _create("ix_approvals_run_id", "approvals", "run_id", "created_at")
    _create("ix_approvals_session_id", "approvals", "session_id", "created_at")
    _create("ix_approvals_pending", "approvals", "workspace_id", "created_at", "id", where=_PENDING)
    op.create_table(
        "waits",
        sa.Column("tool_use_id", sa.String(), primary_key=True),
        sa.Column("workspace_id", sa.String(), sa.ForeignKey("workspaces.id"), nullable=False),
        sa.Column("session_id", sa.String(), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=True),
        sa.Column("event_match", sa.JSON(), nullable=True),
        sa.Column("answer_schema", sa.JSON(), nullable=True),
        sa.Column("until", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("answer_id", sa.String(), nullable=True),
    )
    _create("ix_waits_run_id", "waits", "run_id", "created_at")
    _create("ix_waits_session_id", "waits", "session_id")
    _create("ix_waits_open_events", "waits", "workspace_id", "event_type", "created_at", where=_OPEN)

    _wait_on()


def _wait_on() -> None:
    """The questions that are open now."""
    connection = op.get_bind()
    runs = sa.table("runs", *map(sa.column, ("id", "workspace_id", "session_id", "status")))
    events = sa.table(
        "events",
        *map(sa.column, ("run_id", "session_id", "seq", "type", "payload")),
        sa.column("created_at", UtcDateTime()),
    )
    waits = sa.table(
        "waits",
        *map(sa.column, ("tool_use_id", "workspace_id", "session_id", "run_id", "kind")),
        sa.column("created_at", UtcDateTime()),
    )
    types = ("agent.question", "agent.tool_result")
    for run in connection.execute(sa.select(runs).where(runs.c.status == "waiting")).all():
        mine = (events.c.session_id == run.session_id, events.c.run_id == run.id, events.c.type.in_(types))
        found: dict[str, object] = {}
        for event in connection.execute(sa.select(events).where(*mine).order_by(events.c.seq)).all():
            payload = json.loads(event.payload) if isinstance(event.payload, str) else event.payload
            if event.type == "agent.question":
                found[payload["tool_use_id"]] = event.created_at
            else:
                found.pop(payload["tool_use_id"], None)
        for tool_use_id, created_at in found.items():
            row = (tool_use_id, run.workspace_id, run.session_id, run.id, "input", created_at)
            connection.execute(sa.insert(waits).values(row))


def downgrade() -> None:
    op.drop_table("waits")
    op.drop_table("approvals")
    op.drop_column("sessions", "permissions")
    op.drop_column("runs", "plan")


def _create(name: str, table: str, *columns: str, where: sa.ColumnElement[bool] | None = None) -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
