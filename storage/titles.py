"""Who names a session: people at any time, and a model once, where nobody has."""

from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, or_, select, update
from sqlmodel import col

from domain.clock import now
from domain.runs import RunStatus
from storage.database import Connection
from storage.rows import fetch, fetch_one, fetch_only
from storage.search_index import index_title
from storage.tables import RunRow, SessionRow

_UNNAMED = col(SessionRow.title).is_(None)
_DUE = col(SessionRow.titling) == "due"
_ASKED_FOR = or_(_DUE, col(SessionRow.titling) == "asked")


class Titles:
    """All SQL on titles but for the one that a session is created with. Every method is scoped by workspace."""

    def __init__(self, connection: Connection, workspace_id: str) -> None:
        self._connection = connection
        self._workspace_id = workspace_id

    async def rename(self, session_id: str, title: str | None) -> None:
        """As people say: no model names the session any more, not even where they took its name away."""
        await self._set(session_id, title)

    async def suggest(self, session_id: str, title: str) -> bool:
        """As a model says, where nobody has named the session meanwhile; whether it was taken."""
        return await self._set(session_id, title, _UNNAMED, _ASKED_FOR)

    async def wanted(self, session_id: str) -> bool:
        """Whether a model is still to write it."""
        statement = select(col(SessionRow.id)).where(*self._mine(session_id), _UNNAMED, _ASKED_FOR)
        return (await self._connection.execute(statement)).first() is not None

    async def want(self, session_id: str) -> None:
        """A model is to write it: the sweeper sees to that, if nobody does before."""
        statement = update(SessionRow).where(*self._mine(session_id), _UNNAMED, col(SessionRow.titling).is_(None))
        await self._connection.execute(statement.values(titling="due"))

    async def asked(self, session_id: str) -> None:
        """The workflow that writes it exists."""
        statement = update(SessionRow).where(*self._mine(session_id), _DUE)
        await self._connection.execute(statement.values(titling="asked"))

    async def give_up(self, session_id: str) -> None:
        await self._connection.execute(update(SessionRow).where(*self._mine(session_id)).values(titling="done"))

    async def _set(self, session_id: str, title: str | None, *conditions: ColumnElement[bool]) -> bool:
        """The one place where a session's title changes."""
        statement = update(SessionRow).where(*self._mine(session_id), *conditions)
        changed = await self._connection.execute(statement.values(title=title, titling="done", updated_at=now()))
        if changed.rowcount == 1:
            await index_title(self._connection, session_id, title)
        return changed.rowcount == 1

    def _mine(self, session_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id


async def turn_to_name(connection: Connection, run_id: str) -> RunRow | None:
    """The run, if it is a turn in a session without a name, for which no model was asked yet or perhaps in vain."""
    return await fetch_only(connection, RunRow, _TO_NAME, {"run_id": run_id})


async def first_turn(connection: Connection, session_id: str) -> RunRow | None:
    """The first turn of the session that was completed."""
    statement = select(RunRow).where(
        col(RunRow.session_id) == session_id, col(RunRow.kind) == "turn", col(RunRow.status) == RunStatus.COMPLETED
    )
    return await fetch_one(connection, RunRow, statement.order_by(col(RunRow.created_at), col(RunRow.id)))


async def due_titles(connection: Connection, before: datetime, limit: int) -> list[SessionRow]:
    """Sessions whose title a model is to write, and that nobody has touched since before that time. For the worker only."""
    statement = select(SessionRow).where(_DUE, col(SessionRow.updated_at) < before)
    return await fetch(connection, SessionRow, statement.limit(limit))


_TO_NAME = (
    select(RunRow)
    .join(SessionRow, col(SessionRow.id) == col(RunRow.session_id))
    .where(
        col(RunRow.id) == bindparam("run_id"),
        col(RunRow.kind) == "turn",
        _UNNAMED,
        or_(col(SessionRow.titling).is_(None), _DUE),
    )
)
