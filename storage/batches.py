"""Batches: rows, items, and where they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, case, func, insert, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from domain.batch_events import BatchCounts
from domain.clock import now
from domain.errors import NotFound
from domain.payload import TextContent
from domain.runs import FINISHED, RunStatus
from domain.usage import Usage
from storage.batch_tables import BatchItemRow, BatchRow
from storage.database import Connection
from storage.rows import Page, add, fetch, fetch_one, page
from storage.tables import RunRow, SessionRow

INSERTED_AT_ONCE = 1000
"""Rows a statement."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """No row: ten thousand of those take two seconds to make."""

    custom_id: str | None
    input: tuple[TextContent, ...]
    meta: Mapping[str, str]


@dataclass(frozen=True)
class InFlight:
    """An item that was begun and whose end is not in the batch's log; `status` None: its run was deleted."""

    index: int
    custom_id: str | None
    run_id: str
    status: str | None
    asked_to_stop: bool

    @property
    def over(self) -> bool:
        return self.status is None or self.status in FINISHED


@dataclass(frozen=True)
class Result:
    index: int
    custom_id: str | None
    run_id: str | None
    status: str | None
    output: str | None
    error: dict[str, Any] | None
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    usage_estimated: bool
    cost_nano_usd: int | None


class Batches:
    """All SQL on batches but for their logs, which are sessions' logs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, row: BatchRow, items: Sequence[NewItem]) -> None:
        """The batch, its items and the session that holds its log."""
        log = SessionRow(
            id=row.id,
            workspace_id=row.workspace_id,
            agent_id=row.agent_id,
            agent_version=row.agent_version,
            hidden=True,
            meta={},
            created_at=row.created_at,
            updated_at=row.created_at,
        )
        await add(self._connection, log)
        await add(self._connection, row)
        for begin in range(0, len(items), INSERTED_AT_ONCE):
            rows = [
                {
                    "batch_id": row.id,
                    "item_index": index,
                    "custom_id": item.custom_id,
                    "input": item.input,
                    "meta": item.meta,
                    "run_id": None,
                    "in_flight": False,
                }
                for index, item in enumerate(items[begin : begin + INSERTED_AT_ONCE], begin)
            ]
            await self._connection.execute(insert(BatchItemRow), rows)

    async def get(self, batch_id: str, workspace_id: str | None = None, *, lock: bool = False) -> BatchRow:
        """Raises NotFound, also when it is another workspace's. `workspace_id` None is for the worker only."""
        statement = select(BatchRow).where(col(BatchRow.id) == batch_id)
        if workspace_id is not None:
            statement = statement.where(col(BatchRow.workspace_id) == workspace_id)
        found = await fetch_one(self._connection, BatchRow, statement.with_for_update() if lock else statement)
        if found is None:
            raise NotFound(f"No batch {batch_id}.")
        return found

    async def find(self, workspace_id: str, *, limit: int, cursor: str | None, descending: bool) -> Page[BatchRow]:
        return await page(
            self._connection,
            BatchRow,
            select(BatchRow).where(col(BatchRow.workspace_id) == workspace_id),
            at=BatchRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=BatchRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def change(self, batch_id: str, **columns: Any) -> None:
        await self._connection.execute(update(BatchRow).where(col(BatchRow.id) == batch_id).values(columns))

    async def unfinished_count(self) -> int:
        """In all workspaces."""
        statement = select(func.count()).select_from(BatchRow).where(col(BatchRow.finished_at).is_(None))
        return (await self._connection.execute(statement)).scalar_one()

    async def unfinished(self, after: str, limit: int) -> list[BatchRow]:
        """A page of those that are not over, of all workspaces, by id."""
        statement = select(BatchRow).where(col(BatchRow.finished_at).is_(None), col(BatchRow.id) > after)
        return await fetch(self._connection, BatchRow, statement.order_by(col(BatchRow.id)).limit(limit))

    async def in_flight(self, batch_id: str) -> list[InFlight]:
        statement = (
            select(
                col(BatchItemRow.item_index),
                col(BatchItemRow.custom_id),
                col(BatchItemRow.run_id),
                col(RunRow.status),
                or_(col(RunRow.cancel_requested_at).is_not(None), col(RunRow.terminate_requested_at).is_not(None)),
            )
            .outerjoin(RunRow, col(RunRow.id) == col(BatchItemRow.run_id))
            .where(col(BatchItemRow.batch_id) == batch_id, col(BatchItemRow.in_flight).is_(True))
            .order_by(col(BatchItemRow.item_index))
        )
        return [InFlight(*row) for row in await self._connection.execute(statement)]

    async def landed(self, batch_id: str, indexes: Sequence[int]) -> None:
        """The ends of these items are in the batch's log."""
        mine = (col(BatchItemRow.batch_id) == batch_id, col(BatchItemRow.item_index).in_(indexes))
        await self._connection.execute(update(BatchItemRow).where(*mine).values(in_flight=False))

    async def items(self, batch_id: str, begin: int, limit: int) -> list[BatchItemRow]:
        statement = select(BatchItemRow).where(col(BatchItemRow.batch_id) == batch_id, col(BatchItemRow.item_index) >= begin)
        return await fetch(self._connection, BatchItemRow, statement.order_by(col(BatchItemRow.item_index)).limit(limit))

    async def begun(self, batch_id: str, index: int, run_id: str) -> None:
        """The item has a run, and the next one is the next to begin."""
        mine = (col(BatchItemRow.batch_id) == batch_id, col(BatchItemRow.item_index) == index)
        # Its input is the run's from here on: kept here too, it would outlive the session that somebody deletes.
        values: dict[str, Any] = {"run_id": run_id, "in_flight": True, "input": []}
        await self._connection.execute(update(BatchItemRow).where(*mine).values(values))
        await self.change(batch_id, next_index=index + 1)

    async def end(self, row: BatchRow, status: str) -> None:
        row.status, row.finished_at = status, now()
        await self.change(row.id, status=row.status, finished_at=row.finished_at)

    async def counts(self, rows: Sequence[BatchRow]) -> dict[str, BatchCounts]:
        """Of each batch, as its runs stand now: one that was retried counts as what it is now."""
        mine = col(RunRow.batch_id).in_([row.id for row in rows])
        statement = (
            select(col(RunRow.batch_id), col(RunRow.status), func.count().label("number"))
            .where(mine)
            .group_by(col(RunRow.batch_id), col(RunRow.status))
        )
        found: dict[str, dict[str, int]] = {row.id: {} for row in rows}
        for counted in (await self._connection.execute(statement)).mappings():
            found[counted["batch_id"]][counted["status"]] = counted["number"]
        return {row.id: _counts(row, found[row.id]) for row in rows}

    async def usage(self, batch_id: str) -> tuple[Usage, int | None]:
        """Tokens and billionths of a dollar of its runs and of the sub-agents below them; the price None: of a part unknown."""
        below = aliased(RunRow)
        mine = col(RunRow.batch_id) == batch_id
        its = or_(col(below.id) == col(RunRow.id), col(below.thread_id).is_not(None))
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        unknown = case((and_(col(below.model_call_count) > 0, col(below.cost_nano_usd).is_(None)), 1), else_=0)
        estimated = case((col(below.usage_estimated).is_(True), 1), else_=0)
        statement = (
            select(
                *(func.coalesce(func.sum(getattr(below, name)), 0).label(name) for name in names),
                func.coalesce(func.sum(estimated), 0).label("estimated"),
                func.coalesce(func.sum(unknown), 0).label("unknown"),
                func.sum(col(below.cost_nano_usd)).label("cost"),
            )
            .select_from(RunRow)
            .join(below, and_(col(below.session_id) == col(RunRow.session_id), its))
            .where(mine)
        )
        sums = (await self._connection.execute(statement)).mappings().one()
        usage = Usage(**{name: int(sums[name]) for name in names}, estimated=sums["estimated"] > 0)
        return usage, None if sums["unknown"] or sums["cost"] is None else int(sums["cost"])

    async def results(self, batch_id: str, begin: int, limit: int) -> list[Result]:
        """A page in the order of the inputs; `status` None: the item has no run."""
        statement = (
            select(
                col(BatchItemRow.item_index),
                col(BatchItemRow.custom_id),
                col(BatchItemRow.run_id),
                col(RunRow.status),
                col(RunRow.output),
                col(RunRow.error),
                col(RunRow.input_tokens),
                col(RunRow.output_tokens),
                col(RunRow.cache_read_input_tokens),
                col(RunRow.cache_creation_input_tokens),
                col(RunRow.usage_estimated),
                col(RunRow.cost_nano_usd),
            )
            .outerjoin(RunRow, col(RunRow.id) == col(BatchItemRow.run_id))
            .where(col(BatchItemRow.batch_id) == batch_id, col(BatchItemRow.item_index) >= begin)
            .order_by(col(BatchItemRow.item_index))
            .limit(limit)
        )
        return [Result(*row) for row in await self._connection.execute(statement)]


def item_status(result: Result, batch: BatchRow) -> str:
    if result.status is not None:
        return result.status
    if result.run_id is not None:
        return "deleted"
    return RunStatus.QUEUED if batch.finished_at is None else RunStatus.CANCELLED


def _counts(row: BatchRow, by_status: dict[str, int]) -> BatchCounts:
    never_begun = row.item_count - row.next_index
    rest = RunStatus.QUEUED if row.finished_at is None else RunStatus.CANCELLED
    found = {**by_status, rest: by_status.get(rest, 0) + never_begun}
    return BatchCounts(total=row.item_count, deleted=row.next_index - sum(by_status.values()), **found)
