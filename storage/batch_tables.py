"""The tables of batches and bulk operations."""

from datetime import datetime

from pydantic import JsonValue
from sqlalchemy import JSON, Column, Index, String, column, false
from sqlmodel import Field, SQLModel

from storage.tables import UtcDateTime

_UNFINISHED = column("finished_at").is_(None)
_IN_FLIGHT = column("in_flight").is_(True)


class BatchRow(SQLModel, table=True):
    """Its log is that of the hidden session of the same id."""

    __tablename__ = "batches"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_batches_workspace_id_created_at", "workspace_id", "created_at", "id"),
        Index("ix_batches_unfinished", "id", sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    agent_id: str = Field(foreign_key="agents.id")
    agent_version: int
    limits: dict[str, JsonValue] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    meta: dict[str, str] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    max_concurrent: int
    item_count: int
    next_index: int = 0
    """The first item that has no run yet: they begin in order."""
    status: str = "running"
    cancel_requested_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))
    cancel_reason: str | None = Field(default=None, sa_column=Column(String(2000), nullable=True))
    created_at: datetime = Field(sa_column=Column(UtcDateTime(), nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))


class BatchItemRow(SQLModel, table=True):
    __tablename__ = "batch_items"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (Index("ix_batch_items_in_flight", "batch_id", sqlite_where=_IN_FLIGHT, postgresql_where=_IN_FLIGHT),)

    batch_id: str = Field(foreign_key="batches.id", primary_key=True)
    item_index: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    custom_id: str | None = None
    input: list[dict[str, JsonValue]] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    """`TextContent`s, as JSON; none once it has a run, in whose log they are."""
    meta: dict[str, str] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    run_id: str | None = None
    in_flight: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """It has a run, whose end is not in the batch's log yet."""


class BulkOperationRow(SQLModel, table=True):
    __tablename__ = "bulk_operations"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_bulk_operations_workspace_id_created_at", "workspace_id", "created_at", "id"),
        Index("ix_bulk_operations_unfinished", "id", sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    action: str
    wanted: dict[str, JsonValue] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    """A `BulkFilter`, as JSON."""
    reason: str | None = Field(default=None, sa_column=Column(String(2000), nullable=True))
    matched: dict[str, int] = Field(sa_column=Column(JSON(none_as_null=True), nullable=False))
    """By status, when it was asked for."""
    cursor: str | None = None
    """Behind the runs that were looked at. None: it has not begun."""
    done_count: int = 0
    skipped_count: int = 0
    """Of those that were over, or had gone on, before their turn came."""
    status: str = "running"
    created_at: datetime = Field(sa_column=Column(UtcDateTime(), nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))
