"""What runs wait for: tool uses that the workflow carries out by waiting, and approvals that are not decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, literal, select, union_all, update
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound
from domain.runs import RunStatus
from storage.database import Connection
from storage.rows import fetch, fetch_one
from storage.tables import ApprovalRow, WaitRow

OF_PEOPLE = ("approval", "input", "tool_result")
"""The waits that somebody has to do something about, the most urgent first."""
_ORDER = (*OF_PEOPLE, "event", "time")


@dataclass(frozen=True)
class Open:
    tool_use_id: str
    kind: str


def standing(waits: Sequence[Open]) -> dict[str, Any]:
    """The columns of a run that follow from what it still waits for."""
    if not waits:
        return {"status": RunStatus.RUNNING, "waiting_for": None}
    return {"status": RunStatus.WAITING, "waiting_for": min((wait.kind for wait in waits), key=_ORDER.index)}


def of_people(waits: Sequence[Open]) -> tuple[str, ...]:
    """The tool uses that wait for somebody."""
    return tuple(wait.tool_use_id for wait in waits if wait.kind in OF_PEOPLE)


class Waits:
    """All SQL on waits. The callers have locked the run."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open_of(self, run_id: str) -> list[Open]:
        """In the order in which they began."""
        pending = select(col(ApprovalRow.tool_use_id), literal("approval").label("kind"), col(ApprovalRow.created_at))
        begun = select(col(WaitRow.tool_use_id), col(WaitRow.kind), col(WaitRow.created_at))
        both = union_all(
            pending.where(col(ApprovalRow.run_id) == run_id, col(ApprovalRow.status) == "pending"),
            begun.where(col(WaitRow.run_id) == run_id, col(WaitRow.closed_at).is_(None)),
        ).subquery()
        found = await self._connection.execute(select(both).order_by(both.c.created_at, both.c.tool_use_id))
        return [Open(row.tool_use_id, row.kind) for row in found]

    async def get(self, session_id: str, tool_use_id: str) -> WaitRow:
        """Raises NotFound, also for a tool use of another session."""
        statement = select(WaitRow).where(col(WaitRow.tool_use_id) == tool_use_id, col(WaitRow.session_id) == session_id)
        found = await fetch_one(self._connection, WaitRow, statement)
        if found is None:
            raise NotFound(f"No tool use {tool_use_id} that waits.")
        return found

    async def first_question(self, run_id: str) -> WaitRow | None:
        """The question of the run that waits longest for its answer."""
        wanted = select(WaitRow).where(col(WaitRow.run_id) == run_id, col(WaitRow.kind) == "input", _open())
        return await fetch_one(self._connection, WaitRow, wanted.order_by(col(WaitRow.created_at), col(WaitRow.tool_use_id)))

    async def close(self, tool_use_id: str, answer_id: str | None) -> bool:
        """Whether it was open."""
        mine = (col(WaitRow.tool_use_id) == tool_use_id, _open())
        closing = update(WaitRow).where(*mine).values(closed_at=now(), answer_id=answer_id)
        return (await self._connection.execute(closing)).rowcount == 1

    async def close_all(self, run_id: str) -> None:
        """The run is over."""
        await self._connection.execute(_CLOSE_ALL, {"of_run": run_id, "moment": now()})

    async def answered(self, run_id: str) -> list[WaitRow]:
        """Those of the newest step that have an answer, which its workflow may not have heard of."""
        newest = select(WaitRow).where(col(WaitRow.run_id) == run_id).order_by(col(WaitRow.created_at).desc())
        last = await fetch_one(self._connection, WaitRow, newest)
        if last is None:
            return []
        same_step = (col(WaitRow.run_id) == run_id, col(WaitRow.created_at) == last.created_at)
        return await fetch(self._connection, WaitRow, select(WaitRow).where(*same_step, col(WaitRow.answer_id).is_not(None)))

    async def for_event(self, workspace_id: str, event_type: str, after: tuple[datetime, str], limit: int) -> list[WaitRow]:
        """A page of the open waits for that type of external event, in order of time and tool use."""
        mine = (col(WaitRow.workspace_id) == workspace_id, col(WaitRow.event_type) == event_type, _open())
        moment, tool_use_id = after
        beyond = (col(WaitRow.created_at) > moment) | (
            (col(WaitRow.created_at) == moment) & (col(WaitRow.tool_use_id) > tool_use_id)
        )
        order = (col(WaitRow.created_at), col(WaitRow.tool_use_id))
        return await fetch(self._connection, WaitRow, select(WaitRow).where(*mine, beyond).order_by(*order).limit(limit))


def _open() -> ColumnElement[bool]:
    return col(WaitRow.closed_at).is_(None)


_CLOSE_ALL = update(WaitRow).where(col(WaitRow.run_id) == bindparam("of_run"), _open()).values(closed_at=bindparam("moment"))
