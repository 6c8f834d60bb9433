"""Messages that no model call has read yet, people's and system messages: they have no `processed_at`."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from domain.clock import now
from domain.events import Event
from domain.transcript import STEERED
from storage.database import Connection
from storage.journal import COLUMNS, as_event
from storage.tables import EventRow, RunRow

READER = func.coalesce(col(EventRow.for_run_id), col(EventRow.run_id))
"""The run that reads a message."""


async def take_up(connection: Connection, session_id: str, run_id: str, *, primary: bool) -> list[str]:
    """Stamp as processed what enters the context at the model call of that run that begins now.

    Of a run on the primary thread that is also what came too late for a run before it. Returns the ids of those messages that
    were steered into a running turn.
    """
    parameters = {"in_session": session_id, "of_run": run_id, "moment": now()}
    taken = await connection.execute(_TAKE_UP_PRIMARY if primary else _TAKE_UP, parameters)
    messages = [row for row in taken if row.type == "user.message" and STEERED in (row.private or {})]
    return [row.id for row in sorted(messages, key=lambda row: row.seq)]


async def pending_input(connection: Connection, session_id: str, run_id: str) -> bool:
    """Whether the run has messages that no model call has read."""
    parameters = {"in_session": session_id, "of_run": run_id}
    return (await connection.execute(_IS_PENDING, parameters)).first() is not None


async def unread(connection: Connection, session_id: str, run_id: str) -> list[Event]:
    """Those messages, in order."""
    rows = await connection.execute(_UNREAD, {"in_session": session_id, "of_run": run_id})
    # Sorted here: to have them in order, SQLite would read through all that was ever said.
    return [as_event(row) for row in sorted(rows, key=lambda row: row.seq)]


async def steered(connection: Connection, session_id: str, run_id: str) -> int:
    """How many messages were steered into the run and wait for its next model call."""
    waiting = await unread(connection, session_id, run_id)
    return sum(event.type == "user.message" and STEERED in (event.private or {}) for event in waiting)


async def defer(connection: Connection, event_ids: Sequence[str], run_id: str) -> None:
    """Have that run read them."""
    await connection.execute(update(EventRow).where(col(EventRow.id).in_(event_ids)).values(for_run_id=run_id))


async def stamp(connection: Connection, session_id: str, run_id: str, type: str) -> None:
    """The run's events of that type are processed."""
    mine = (col(EventRow.session_id) == session_id, col(EventRow.run_id) == run_id, col(EventRow.type) == type)
    statement = update(EventRow).where(*mine, col(EventRow.processed_at).is_(None))
    await connection.execute(statement.values(processed_at=now()))


_MESSAGE = (
    col(EventRow.session_id) == bindparam("in_session"),
    col(EventRow.type).in_(("user.message", "system.message")),
    col(EventRow.processed_at).is_(None),
)
_ITS_OWN = bindparam("of_run") == READER


def _too_late() -> ColumnElement[bool]:
    """As `domain.transcript` has it: of a run that had begun to call its model, and is over."""
    start = aliased(EventRow)
    return and_(
        col(EventRow.thread_id).is_(None),
        col(EventRow.for_run_id).is_(None),
        exists().where(col(RunRow.id) == col(EventRow.run_id), col(RunRow.finished_at).is_not(None)),
        exists().where(col(start.run_id) == col(EventRow.run_id), col(start.type) == "span.model_request_start"),
    )


_TAKING_UP = update(EventRow).values(processed_at=bindparam("moment"))
_READ = (col(EventRow.id), col(EventRow.seq), col(EventRow.type), col(EventRow.private))
_TAKE_UP = _TAKING_UP.where(*_MESSAGE, _ITS_OWN).returning(*_READ)
_TAKE_UP_PRIMARY = _TAKING_UP.where(*_MESSAGE, or_(_ITS_OWN, _too_late())).returning(*_READ)
_IS_PENDING = select(col(EventRow.seq)).where(*_MESSAGE, _ITS_OWN).limit(1)
_UNREAD = select(*COLUMNS).where(*_MESSAGE, _ITS_OWN)
