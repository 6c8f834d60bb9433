"""Bulk operations: rows, and the runs that they are for."""

from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from domain.batches import ELIGIBLE, BulkAction, BulkFilter
from domain.errors import NotFound
from domain.runs import RunStatus
from storage.batch_tables import BulkOperationRow
from storage.database import Connection
from storage.rows import Page, fetch, fetch_one, page
from storage.runs import RunFilter, Runs, matching, unfinished
from storage.tables import RunRow


class BulkOperations:
    """All SQL on bulk operations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, id: str, workspace_id: str | None = None, *, lock: bool = False) -> BulkOperationRow:
        """Raises NotFound, also when it is another workspace's. `workspace_id` None is for the worker only."""
        statement = select(BulkOperationRow).where(col(BulkOperationRow.id) == id)
        if workspace_id is not None:
            statement = statement.where(col(BulkOperationRow.workspace_id) == workspace_id)
        found = await fetch_one(self._connection, BulkOperationRow, statement.with_for_update() if lock else statement)
        if found is None:
            raise NotFound(f"No bulk operation {id}.")
        return found

    async def find(self, workspace_id: str, *, limit: int, cursor: str | None, descending: bool) -> Page[BulkOperationRow]:
        return await page(
            self._connection,
            BulkOperationRow,
            select(BulkOperationRow).where(col(BulkOperationRow.workspace_id) == workspace_id),
            at=BulkOperationRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=BulkOperationRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def change(self, id: str, **columns: Any) -> None:
        await self._connection.execute(update(BulkOperationRow).where(col(BulkOperationRow.id) == id).values(columns))

    async def unfinished(self, after: str, limit: int) -> list[BulkOperationRow]:
        """A page of those that are not over, of all workspaces, by id."""
        mine = (col(BulkOperationRow.finished_at).is_(None), col(BulkOperationRow.id) > after)
        statement = select(BulkOperationRow).where(*mine).order_by(col(BulkOperationRow.id)).limit(limit)
        return await fetch(self._connection, BulkOperationRow, statement)

    async def count(self, workspace_id: str, action: BulkAction, wanted: BulkFilter) -> dict[str, int]:
        """How many runs it would be done to, by their status."""
        statuses = _statuses(action, wanted)
        if not statuses:
            return {}
        found = matching(workspace_id, _filter(action, wanted)).where(col(RunRow.status).in_(statuses))
        if action == "retry":
            found = found.where(_newest())
        counted = found.with_only_columns(col(RunRow.status), func.count().label("number")).group_by(col(RunRow.status))
        return {row["status"]: row["number"] for row in (await self._connection.execute(counted)).mappings()}

    async def next_runs(self, row: BulkOperationRow, limit: int) -> Page[RunRow]:
        """The next page of those that were there when it was asked for, the oldest first."""
        action: Any = row.action
        wanted = BulkFilter.model_validate(row.wanted)
        before = min(row.created_at, wanted.created_before or row.created_at)
        narrowed = wanted.model_copy(update={"created_before": before})
        if not _statuses(action, wanted):
            return Page([], None)
        return await Runs(self._connection).find(
            row.workspace_id, _filter(action, narrowed), limit=limit, cursor=row.cursor, descending=False
        )

    async def retried_and_unfinished(self, id: str) -> int:
        """How many of the runs that it has retried are not over yet."""
        statement = select(func.count()).select_from(RunRow).where(col(RunRow.bulk_id) == id, unfinished())
        return (await self._connection.execute(statement)).scalar_one()


def _statuses(action: BulkAction, wanted: BulkFilter) -> list[RunStatus]:
    return [status for status in ELIGIBLE[action] if not wanted.status or status in wanted.status]


def _filter(action: BulkAction, wanted: BulkFilter) -> RunFilter:
    return RunFilter(
        _statuses(action, wanted),
        wanted.agent_id,
        wanted.session_id,
        created_after=wanted.created_after,
        created_before=wanted.created_before,
        batch_id=wanted.batch_id,
        metadata=wanted.metadata,
        primary=True,
    )


def _newest() -> ColumnElement[bool]:
    """That the session has not gone on after the run."""
    later = aliased(RunRow)
    behind = or_(
        col(later.created_at) > col(RunRow.created_at),
        and_(col(later.created_at) == col(RunRow.created_at), col(later.id) > col(RunRow.id)),
    )
    mine = (col(later.session_id) == col(RunRow.session_id), col(later.thread_id).is_(None), behind)
    return ~exists().where(*mine)
