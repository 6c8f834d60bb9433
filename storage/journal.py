"""The journal: the one writer of events. Rows that follow from an event change in the same transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound, RunFinished
from domain.events import Event, EventPayload, payloads
from domain.ids import new_id
from domain.runs import FINISHED
from storage.projections import Changes, project
from storage.tables import EventRow, RunRow, SessionRow

COLUMNS: tuple[Any, ...] = (
    col(EventRow.id),
    col(EventRow.seq),
    col(EventRow.session_id),
    col(EventRow.run_id),
    col(EventRow.created_at),
    col(EventRow.processed_at),
    col(EventRow.type),
    col(EventRow.payload),
    col(EventRow.private),
)


@dataclass(frozen=True)
class Draft:
    """An event to be appended. `id` is given where the text was streamed under it already."""

    payload: EventPayload
    id: str = field(default_factory=lambda: new_id("sevt"))
    queued: bool = False
    """Not taken up yet: `processed_at` stays empty."""
    private: Mapping[str, JsonValue] | None = None


class Journal:
    """Appends to and reads the event log of sessions."""

    def __init__(self, connection: AsyncConnection, appended: dict[str, list[Event]]) -> None:
        self._connection = connection
        self._appended = appended

    async def append(
        self,
        session_id: str,
        run_id: str | None,
        drafts: Sequence[Draft],
        *,
        key: str | None = None,
        key_is_new: bool = False,
        run_changes: Mapping[str, Any] | None = None,
    ) -> list[Event]:
        """Append in order, under consecutive `seq`, and change the rows that follow from it.

        With a `key` already used in the session nothing is written and the events written under it are returned. Where the
        caller has reason to believe that the key is new, the look-up is saved; if it is not, the database refuses it.
        `run_changes` are columns of the run to set beside those that the events imply.
        Raises RunFinished when the run is over: a process that outlived its run writes nothing more.
        """
        if key is not None and not key_is_new and (before := await written(self._connection, session_id, key)):
            return before
        moment = now()
        changes = Changes()
        for draft in drafts:
            project(draft.payload, moment, changes)
        changes.run.update(run_changes or {})
        # The row lock that this update takes makes the order of commits the order of seq.
        statement = (
            update(SessionRow)
            .where(col(SessionRow.id) == session_id)
            .values(last_seq=SessionRow.last_seq + len(drafts), updated_at=moment, **changes.session)
            .returning(col(SessionRow.last_seq))
        )
        last_seq = (await self._connection.execute(statement)).scalar_one_or_none()
        if last_seq is None:
            raise NotFound(f"No session {session_id}.")
        if run_id is not None:
            await self._change_run(run_id, moment, changes.run)
        events = [
            Event(
                id=draft.id,
                seq=last_seq - len(drafts) + 1 + index,
                session_id=session_id,
                run_id=run_id,
                created_at=moment,
                processed_at=None if draft.queued else moment,
                payload=draft.payload,
                private=None if draft.private is None else dict(draft.private),
            )
            for index, draft in enumerate(drafts)
        ]
        await self._connection.execute(
            insert(EventRow),
            [
                {
                    "session_id": session_id,
                    "seq": event.seq,
                    "id": event.id,
                    "run_id": run_id,
                    "type": event.type,
                    "append_key": key,
                    "append_index": index,
                    "created_at": moment,
                    "processed_at": event.processed_at,
                    "payload": event.payload.model_dump(mode="json"),
                    "private": event.private,
                }
                for index, event in enumerate(events)
            ],
        )
        self._appended.setdefault(session_id, []).extend(events)
        return events

    async def take_up(self, session_id: str, run_id: str) -> None:
        """Stamp the run's queued messages as processed: the model is about to read them."""
        await self._connection.execute(
            update(EventRow)
            .where(
                col(EventRow.session_id) == session_id,
                col(EventRow.run_id) == run_id,
                col(EventRow.type) == "user.message",
                col(EventRow.processed_at).is_(None),
            )
            .values(processed_at=now())
        )

    async def _change_run(self, run_id: str, moment: Any, changes: Mapping[str, Any]) -> None:
        statement = update(RunRow).where(col(RunRow.id) == run_id).values(touched_at=moment, **changes)
        if changes.get("status") != "queued":  # a retry is what brings a finished run back
            statement = statement.where(col(RunRow.status).not_in([status.value for status in FINISHED]))
        if (await self._connection.execute(statement)).rowcount == 0:
            raise RunFinished(f"Run {run_id} is over.")


def as_event(row: Any) -> Event:
    """An event out of a row of `COLUMNS`."""
    return Event(
        id=row.id,
        seq=row.seq,
        session_id=row.session_id,
        run_id=row.run_id,
        created_at=row.created_at,
        processed_at=row.processed_at,
        payload=payloads.validate_python(row.payload),
        private=row.private,
    )


async def read(
    connection: AsyncConnection,
    session_id: str,
    *,
    after: int = 0,
    before: int | None = None,
    limit: int = 1000,
    types: Iterable[str] | None = None,
    run_id: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    descending: bool = False,
) -> list[Event]:
    """A page of a session's log: `after < seq < before`, in `seq` order."""
    statement = select(*COLUMNS).where(col(EventRow.session_id) == session_id, col(EventRow.seq) > after)
    if before is not None:
        statement = statement.where(col(EventRow.seq) < before)
    if types is not None:
        statement = statement.where(col(EventRow.type).in_(list(types)))
    if run_id is not None:
        statement = statement.where(col(EventRow.run_id) == run_id)
    if created_after is not None:
        statement = statement.where(col(EventRow.created_at) > created_after)
    if created_before is not None:
        statement = statement.where(col(EventRow.created_at) < created_before)
    seq = col(EventRow.seq)
    rows = await connection.execute(statement.order_by(seq.desc() if descending else seq).limit(limit))
    return [as_event(row) for row in rows]


async def last_seqs(connection: AsyncConnection, session_ids: Sequence[str]) -> list[tuple[str, int]]:
    """Where the logs of those sessions end."""
    statement = select(col(SessionRow.id), col(SessionRow.last_seq)).where(col(SessionRow.id).in_(session_ids))
    return [(id, last_seq) for id, last_seq in await connection.execute(statement)]


async def read_one(connection: AsyncConnection, session_id: str, event_id: str) -> Event:
    """Raises NotFound."""
    statement = select(*COLUMNS).where(col(EventRow.id) == event_id, col(EventRow.session_id) == session_id)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound(f"No event {event_id}.")
    return as_event(row)


async def written(connection: AsyncConnection, session_id: str, key: str) -> list[Event]:
    """The events that were appended under that key; none if the append never committed."""
    rows = await connection.execute(
        select(*COLUMNS)
        .where(col(EventRow.session_id) == session_id, col(EventRow.append_key) == key)
        .order_by(col(EventRow.append_index))
    )
    return [as_event(row) for row in rows]


async def pending_input(connection: AsyncConnection, session_id: str, run_id: str) -> bool:
    """Whether the run has messages that no model call has read."""
    statement = (
        select(col(EventRow.id))
        .where(
            col(EventRow.session_id) == session_id,
            col(EventRow.run_id) == run_id,
            col(EventRow.type) == "user.message",
            col(EventRow.processed_at).is_(None),
        )
        .limit(1)
    )
    return (await connection.execute(statement)).first() is not None


async def last_of_type(connection: AsyncConnection, session_id: str, run_id: str, type: str) -> int:
    """The seq of the run's newest event of that type; 0 if there is none."""
    statement = select(func.max(col(EventRow.seq))).where(
        col(EventRow.session_id) == session_id, col(EventRow.run_id) == run_id, col(EventRow.type) == type
    )
    return (await connection.execute(statement)).scalar_one() or 0
