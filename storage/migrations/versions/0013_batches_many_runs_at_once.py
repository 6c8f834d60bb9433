"""Batches and bulk operations."""

import sqlalchemy as sa
from alembic import op

from storage.tables import UtcDateTime

revision = "0013_batches"
down_revision = "0012_client_tokens"
branch_labels = None
depends_on = None

_UNFINISHED = sa.column("finished_at").is_(None)
_IN_FLIGHT = sa.column("in_flight").is_(True)
_OF_BATCH = sa.column("batch_id").is_not(None)
_OF_BULK = sa.column("bulk_id").is_not(None)


def upgrade() -> None:
    op.add_column("sessions", sa.Column("hidden", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("runs", sa.Column("batch_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("bulk_id", sa.String(), nullable=True))
    _create("ix_runs_batch_id", "runs", "batch_id", "created_at", "id", where=_OF_BATCH)
    _create("ix_runs_batch_id_status", "runs", "batch_id", "status", "created_at", "id", where=_OF_BATCH)
    _create("ix_runs_bulk_id_status", "runs", "bulk_id", "status", where=_OF_BULK)
    op.create_table(
        "batches",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("workspace_id", sa.String(), sa.ForeignKey("workspaces.id"), nullable=False),
        sa.Column("agent_id", sa.String(), sa.ForeignKey("agents.id"), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("max_concurrent", sa.Integer(), nullable=False),
        sa.Column("item_count", sa.Integer(), nullable=False),
        sa.Column("next_index", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("cancel_requested_at", UtcDateTime(), nullable=True),
        sa.Column("cancel_reason", sa.String(2000), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
    )
    _create("ix_batches_workspace_id_created_at", "batches", "workspace_id", "created_at", "id")
    _create("ix_batches_unfinished", "batches", "id", where=_UNFINISHED)
    op.create_table(
        "batch_items",
        sa.Column("batch_id", sa.String(), sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("item_index", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.String(), nullable=True),
        sa.Column("input", sa.JSON(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("in_flight", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    _create("ix_batch_items_in_flight", "batch_items", "batch_id", where=_IN_FLIGHT)
    op.create_table(
        "bulk_operations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("workspace_id", sa.String(), sa.ForeignKey("workspaces.id"), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=True),
        sa.Column("matched", sa.JSON(), nullable=False),
        sa.Column("cursor", sa.String(), nullable=True),
        sa.Column("done_count", sa.Integer(), nullable=False),
        sa.Column("skipped_count", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
    )
    _create("ix_bulk_operations_workspace_id_created_at", "bulk_operations", "workspace_id", "created_at", "id")
    _create("ix_bulk_operations_unfinished", "bulk_operations", "id", where=_UNFINISHED)


def downgrade() -> None:
    for table in ("bulk_operations", "batch_items", "batches"):
        op.drop_table(table)
    for index in ("ix_runs_bulk_id_status", "ix_runs_batch_id_status", "ix_runs_batch_id"):
        op.drop_index(index, "runs")
    op.drop_column("runs", "bulk_id")
    op.drop_column("runs", "batch_id")
    op.execute(sa.text("DELETE FROM events WHERE session_id IN (SELECT id FROM sessions WHERE hidden)"))
    op.execute(sa.text("DELETE FROM sessions WHERE hidden"))
    op.drop_column("sessions", "hidden")


def _create(name: str, table: str, *columns: str, where: sa.ColumnElement[bool] | None = None) -> None:
    op.create_index(name, table, list(columns), sqlite_where=where, postgresql_where=where)
