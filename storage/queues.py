"""The turns of a session that wait for the active one, and how the session is handed from one to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, exists, func, literal_column, or_, select, update
from sqlmodel import col

from domain.events import UserMessage, payloads
from domain.payload import UserContent
from storage.database import Connection
from storage.pending import READER
from storage.rows import fetch, fetch_one, fetch_only
from storage.tables import EventRow, RunRow, SessionRow

# Positions are seqs of the log, which only grow. What goes ahead of the queue has a seq far below all others: messages that
# interrupt, and behind them those that came too late for the turn that they were sent to.
INTERRUPTING = -(2**42)
NEXT = -(2**41)


def interrupts(row: RunRow) -> bool:
    return row.queue_position < NEXT


@dataclass(frozen=True)
class Waiting:
    """A message that waits, and the turn that will read it."""

    run: RunRow
    place: int
    """The turn's, 1 is next: a turn reads several messages where they came too late for the one before it."""
    event_id: str
    content: tuple[UserContent, ...]
    created_at: datetime


class Queues:
    """All SQL on queues. What changes one has locked the session's row."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def waiting(self, session_id: str) -> list[RunRow]:
        """Turns that wait for the active one, in the order in which they will run."""
        return await fetch(self._connection, RunRow, _WAITING, {"in_session": session_id})

    async def head(self, session_id: str) -> RunRow | None:
        return await fetch_only(self._connection, RunRow, _HEAD, {"in_session": session_id})

    async def shown(self, session_id: str) -> list[Waiting]:
        """The same by what they will read."""
        rows = await self.waiting(session_id)
        places = {row.id: (place, row) for place, row in enumerate(rows, 1)}
        inputs = [row.input_event_id for row in rows if row.input_event_id is not None]
        messages = select(
            col(EventRow.id), col(EventRow.seq), col(EventRow.payload), col(EventRow.created_at), READER.label("reader")
        )
        statements = (
            messages.where(col(EventRow.id).in_(inputs)),  # which a model has read where the turn is retried
            messages.where(
                col(EventRow.session_id) == session_id,
                col(EventRow.type) == "user.message",
                col(EventRow.processed_at).is_(None),
                READER.in_(places),
            ),
        )
        found = {row.id: row for statement in statements for row in await self._connection.execute(statement)}

        def waiting(row: Row[Any]) -> Waiting:
            place, run = places[row.reader]
            payload = payloads.validate_python(row.payload)
            content = payload.content if isinstance(payload, UserMessage) else ()
            return Waiting(run, place, row.id, content, row.created_at)

        return [waiting(row) for row in sorted(found.values(), key=lambda row: (places[row.reader][0], row.seq))]

    async def reading(self, session_id: str, event_id: str) -> RunRow | None:
        """The turn of that message, whether it waits or not."""
        mine = (col(EventRow.id) == event_id, col(EventRow.session_id) == session_id, col(EventRow.type) == "user.message")
        its = select(READER).where(*mine).scalar_subquery()
        statement = select(RunRow).where(col(RunRow.id) == its, col(RunRow.thread_id).is_(None))
        return await fetch_one(self._connection, RunRow, statement)

    async def length(self, session_id: str) -> int:
        return (await self._connection.execute(_LENGTH, {"in_session": session_id})).scalar_one()

    async def lengths(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Of each session, how many turns wait for the active one; sessions without any are left out."""
        statement = (
            select(col(RunRow.session_id), func.count().label("waiting"))
            .join(SessionRow, col(SessionRow.id) == col(RunRow.session_id))
            .where(
                col(RunRow.session_id).in_(session_ids),
                _QUEUED,
                col(RunRow.thread_id).is_(None),
                or_(col(SessionRow.active_run_id).is_(None), col(RunRow.id) != col(SessionRow.active_run_id)),
            )
            .group_by(col(RunRow.session_id))
        )
        return {row.session_id: row.waiting for row in await self._connection.execute(statement)}

    async def place(self, run_id: str, position: int) -> None:
        await self._connection.execute(_PLACE, {"run_id": run_id, "position": position})

    async def move(self, row: RunRow, place: int) -> int:
        """Move a turn that waits to that place, counted from 1, or to the end; the place that it has then.

        The waiting turns exchange the positions that they have, so that what comes later stays behind them.
        """
        rows = await self.waiting(row.session_id)
        order = [other for other in rows if other.id != row.id]
        index = min(place - 1, len(order))
        order.insert(index, row)
        for other, position in zip(order, [other.queue_position for other in rows], strict=True):
            if other.queue_position != position:
                await self.place(other.id, position)
        return index + 1

    async def activate(self, session_id: str, run_id: str) -> bool:
        """Make the run active, unless its session has an active one or is paused. Compare-and-set: of two at once, one wins."""
        return (await self._connection.execute(_ACTIVATE, {"in_session": session_id, "run_id": run_id})).rowcount == 1

    async def advance(self, session_id: str, finished_run_id: str) -> RunRow | None:
        """Hand the session over from a finished run to the next queued one, and return that.

        None if nothing waits, the session is paused, or it has been handed over before.
        """
        stays = bool((await self._connection.execute(_PAUSED, {"in_session": session_id})).scalar_one_or_none())
        following = None if stays else await self.head(session_id)
        handed = {"in_session": session_id, "from_run": finished_run_id, "to_run": following and following.id}
        moved = (await self._connection.execute(_HAND_OVER, handed)).rowcount == 1
        return following if moved else None

    async def active_after(self, session_id: str, finished_run_id: str) -> RunRow | None:
        """The queued run that a session was already handed to: what `advance` returned before a crash."""
        wanted = {"in_session": session_id, "from_run": finished_run_id}
        return await fetch_only(self._connection, RunRow, _ACTIVE_AFTER, wanted)

    async def take_over(self, session_id: str, over_run_id: str) -> RunRow | None:
        """`advance` for a session whose active run is over, or is not there at all."""
        await self._connection.execute(select(col(SessionRow.id)).where(col(SessionRow.id) == session_id).with_for_update())
        return await self.advance(session_id, over_run_id)


# Not a parameter: the index of queued runs serves no other wording.
_QUEUED = col(RunRow.status) == literal_column("'queued'")

_WAITS = (
    col(RunRow.session_id) == bindparam("in_session"),
    _QUEUED,
    col(RunRow.thread_id).is_(None),
    ~exists().where(col(SessionRow.id) == bindparam("in_session"), col(SessionRow.active_run_id) == col(RunRow.id)),
)
_WAITING = select(RunRow).where(*_WAITS).order_by(col(RunRow.queue_position), col(RunRow.created_at), col(RunRow.id))
_HEAD = _WAITING.limit(1)
_PLACE = update(RunRow).where(col(RunRow.id) == bindparam("run_id")).values(queue_position=bindparam("position"))
_HERE = col(SessionRow.id) == bindparam("in_session")
_PAUSED = select(col(SessionRow.paused)).where(_HERE)
_ACTIVATE = (
    update(SessionRow)
    .where(_HERE, col(SessionRow.active_run_id).is_(None), col(SessionRow.paused).is_(False))
    .values(active_run_id=bindparam("run_id"))
)
_HAND_OVER = (
    update(SessionRow)
    .where(_HERE, or_(col(SessionRow.active_run_id) == bindparam("from_run"), col(SessionRow.active_run_id).is_(None)))
    .values(active_run_id=bindparam("to_run"))
)
_ACTIVE_AFTER = (
    select(RunRow)
    .join(SessionRow, col(SessionRow.active_run_id) == col(RunRow.id))
    .where(_HERE, col(RunRow.id) != bindparam("from_run"), _QUEUED)
)
_LENGTH = select(func.count().label("waiting")).where(*_WAITS)
