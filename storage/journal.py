"""The journal: the one writer of events. Rows that follow from an event change in the same transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Executable, Integer, Update, bindparam, func, insert, select, update
from sqlmodel import col

from domain.clock import now
from domain.errors import AlreadyStarted, NotFound, RunFinished
from domain.events import (
    Event,
    EventPayload,
    RunCancelled,
    RunFailed,
    RunTerminated,
    SessionIdle,
    SessionRescheduled,
    SessionRunning,
    ThreadIdle,
    ThreadRescheduled,
    ThreadRunning,
    ThreadTerminated,
    payloads,
)
from domain.ids import new_id
from domain.payload import UserContent
from storage.artifacts import record_artifacts
from storage.changes import OF_PRIMARY, Changes, Shape, updating
from storage.database import Connection
from storage.projections import project
from storage.rows import first_of_each
from storage.runs import unfinished
from storage.search_index import index_messages, reindex
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
    col(EventRow.thread_id),
    col(EventRow.for_run_id),
)

FEW_TYPES = 4


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

    def __init__(self, connection: Connection, appended: dict[str, list[Event]]) -> None:
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
        on_run, on_session = Changes({"touched_at": moment}), Changes({"updated_at": moment})
        for draft in drafts:
            project(draft.payload, moment, on_run, on_session)
        on_run.set.update(run_changes or {})
        last_seq = await self._take_seqs(session_id, run_id, len(drafts), on_session)
        thread_id = None
        if run_id is not None:
            thread_id, agent_name = await self._change_run(run_id, on_run)
            if thread_id is not None:
                drafts = of_thread(drafts, thread_id, agent_name)
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
                thread_id=thread_id,
            )
            for index, draft in enumerate(drafts)
        ]
        await self._connection.execute(
            _INSERT,
            [
                {
                    "session_id": session_id,
                    "seq": event.seq,
                    "id": event.id,
                    "run_id": run_id,
                    "thread_id": thread_id,
                    "type": event.type,
                    "append_key": key,
                    "append_index": index,
                    "created_at": moment,
                    "processed_at": event.processed_at,
                    "payload": event.payload,
                    "private": event.private,
                }
                for index, event in enumerate(events)
            ],
        )
        await record_artifacts(self._connection, events)
        await index_messages(self._connection, events)
        self._appended.setdefault(session_id, []).extend(events)
        return events

    async def _take_seqs(self, session_id: str, run_id: str | None, count: int, changes: Changes) -> int:
        """Reserve so many; the last of them. The row lock that this takes makes the order of commits the order of seq."""
        changes.plus("last_seq", count)
        parameters = {"row_id": session_id, **changes.parameters}
        if OF_PRIMARY & {*changes.set, *changes.add}:
            parameters["by_run"] = run_id
        last = (await self._connection.execute(_changing_session(changes.shape), parameters)).scalar_one_or_none()
        if last is None:
            raise NotFound(f"No session {session_id}.")
        return last

    async def _change_run(self, run_id: str, changes: Changes) -> tuple[str | None, str]:
        """The run's thread, if it is a sub-agent's, and its agent's name."""
        retried = changes.set.get("status") == "queued"  # which is what brings a finished run back
        statement = _changing_run(changes.shape, retried)
        found = (await self._connection.execute(statement, {"row_id": run_id, **changes.parameters})).one_or_none()
        if found is None:
            raise RunFinished(f"Run {run_id} is over.")
        return found.thread_id, found.agent_name


def of_thread(drafts: Sequence[Draft], thread_id: str, agent_name: str) -> list[Draft]:
    """What a run says of its session is said of its thread, where it is a sub-agent's."""
    stopped = any(isinstance(draft.payload, RunFailed | RunCancelled | RunTerminated) for draft in drafts)

    def said(payload: EventPayload) -> EventPayload:
        match payload:
            case SessionRunning():
                return ThreadRunning(session_thread_id=thread_id, agent_name=agent_name)
            case SessionRescheduled():
                return ThreadRescheduled(session_thread_id=thread_id, agent_name=agent_name)
            case SessionIdle() if stopped:
                return ThreadTerminated(session_thread_id=thread_id, agent_name=agent_name)
            case SessionIdle(stop_reason=reason):
                return ThreadIdle(session_thread_id=thread_id, agent_name=agent_name, stop_reason=reason)
            case _:
                return payload

    return [replace(draft, payload=said(draft.payload)) for draft in drafts]


_INSERT = insert(EventRow)


@lru_cache(maxsize=500)
def _changing_session(shape: Shape) -> Update:
    return updating(SessionRow, shape).returning(col(SessionRow.last_seq))


@lru_cache(maxsize=500)
def _changing_run(shape: Shape, retried: bool) -> Update:
    statement = updating(RunRow, shape).returning(col(RunRow.thread_id), col(RunRow.agent_name))
    return statement if retried else statement.where(unfinished())


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
        thread_id=row.thread_id,
        for_run_id=row.for_run_id,
    )


async def read(
    connection: Connection,
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
    primary: Collection[str] | None = None,
) -> list[Event]:
    """A page of a session's log: `after < seq < before`, in `seq` order.

    `primary`: only what is on the primary thread, and of the others these types.
    """
    wanted: dict[str, Any] = {
        "session_id": session_id,
        "after": after,
        "before": before,
        "run_id": run_id,
        "created_after": created_after,
        "created_before": created_before,
        "limit": limit,
        "primary": None if primary is None else sorted(primary),
    }
    if types is not None:
        names = list(dict.fromkeys(types))
        # A few types may be rare in the log, which is then not to be read through for them.
        few = 0 < len(names) <= FEW_TYPES
        wanted |= {f"type_{number}": name for number, name in enumerate(names)} if few else {"types": names}
    given = {name: value for name, value in wanted.items() if value is not None}
    return [as_event(row) for row in await connection.execute(_reading(tuple(given), descending), given)]


@lru_cache(maxsize=128)
def _reading(given: tuple[str, ...], descending: bool) -> Executable:
    seq, type, created_at = col(EventRow.seq), col(EventRow.type), col(EventRow.created_at)
    conditions = {
        "session_id": col(EventRow.session_id) == bindparam("session_id"),
        "after": seq > bindparam("after"),
        "before": seq < bindparam("before"),
        "run_id": col(EventRow.run_id) == bindparam("run_id"),
        "created_after": created_at > bindparam("created_after"),
        "created_before": created_at < bindparam("created_before"),
        "primary": col(EventRow.thread_id).is_(None) | type.in_(bindparam("primary", expanding=True)),
        "types": type.in_(bindparam("types", expanding=True)),
    }
    wanted = [conditions[name] for name in given if name in conditions]
    order = seq.desc() if descending else seq.asc()
    limit = bindparam("limit", type_=Integer)
    if one_of := [type == bindparam(name) for name in given if name.startswith("type_")]:
        firsts = first_of_each(select(seq).where(*wanted), one_of, [order], limit)
        wanted = [conditions["session_id"], seq.in_(firsts)]
    return select(*COLUMNS).where(*wanted).order_by(order).limit(limit)


_READ_ONE = select(*COLUMNS).where(
    col(EventRow.id) == bindparam("event_id"), col(EventRow.session_id) == bindparam("session_id")
)
_LAST_OF_TYPE = select(func.max(col(EventRow.seq))).where(
    col(EventRow.session_id) == bindparam("session_id"),
    col(EventRow.run_id) == bindparam("run_id"),
    col(EventRow.type) == bindparam("type"),
)
_READ_MANY = select(*COLUMNS).where(col(EventRow.id).in_(bindparam("event_ids", expanding=True)))
_WRITTEN = (
    select(*COLUMNS)
    .where(col(EventRow.session_id) == bindparam("session_id"), col(EventRow.append_key) == bindparam("append_key"))
    .order_by(col(EventRow.append_index))
)


async def last_seqs(connection: Connection, session_ids: Sequence[str]) -> list[tuple[str, int]]:
    """Where the logs of those sessions end."""
    statement = select(col(SessionRow.id), col(SessionRow.last_seq)).where(col(SessionRow.id).in_(session_ids))
    return [(row.id, row.last_seq) for row in await connection.execute(statement)]


async def read_one(connection: Connection, session_id: str, event_id: str) -> Event:
    """Raises NotFound."""
    row = (await connection.execute(_READ_ONE, {"session_id": session_id, "event_id": event_id})).one_or_none()
    if row is None:
        raise NotFound(f"No event {event_id}.")
    return as_event(row)


async def read_many(connection: Connection, event_ids: Sequence[str]) -> list[Event]:
    """Those events, of any sessions, in no order: the caller knows whose they are."""
    return [as_event(row) for row in await connection.execute(_READ_MANY, {"event_ids": event_ids})]


async def written(connection: Connection, session_id: str, key: str) -> list[Event]:
    """The events that were appended under that key; none if the append never committed."""
    rows = await connection.execute(_WRITTEN, {"session_id": session_id, "append_key": key})
    return [as_event(row) for row in rows]


async def reword(connection: Connection, session_id: str, event_id: str, content: Sequence[UserContent]) -> datetime:
    """Change what a message says that no model call has read: when it was sent. The caller appends an event that says so.

    Raises NotFound, AlreadyStarted.
    """
    event = await read_one(connection, session_id, event_id)
    if event.processed_at is not None:  # its turn is retried
        raise AlreadyStarted(f"A model has read message {event_id}: edit and regenerate instead, by a fork.")
    changed = event.payload.model_copy(update={"content": tuple(content)})
    await connection.execute(update(EventRow).where(col(EventRow.id) == event_id).values(payload=changed))
    await reindex(connection, event.model_copy(update={"payload": changed}))
    return event.created_at


async def last_of_type(connection: Connection, session_id: str, run_id: str, type: str) -> int:
    """The seq of the run's newest event of that type; 0 if there is none."""
    wanted = {"session_id": session_id, "run_id": run_id, "type": type}
    return (await connection.execute(_LAST_OF_TYPE, wanted)).scalar_one() or 0
