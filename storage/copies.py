"""Logs that are copied into a new session. The one place beside the journal that inserts events, with their own times.

What the copy leaves open is closed through the journal: the copied session is idle, and every run in it is over.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import JsonValue
from sqlalchemy import ColumnElement, case, insert, select, update
from sqlmodel import col

from domain.clock import now
from domain.copies import Outline, Renaming, Selection, open_turn, quiet_end, told
from domain.events import (
    AgentArtifact,
    AgentCustomToolUse,
    AgentMcpToolUse,
    AgentMessage,
    AgentToolUse,
    ApprovalCancelled,
    ApprovalExpired,
    ApprovalRequested,
    ApprovalResolved,
    Event,
    EventPayload,
    ModelRequestEnd,
    ModelRequestStart,
    RunCancelled,
    SessionIdle,
    UserMessage,
    payloads,
)
from domain.mcp import tool_name
from domain.queue_events import SessionSteer
from domain.runs import RunError, RunStatus, StopReason
from domain.usage import Usage
from storage.changes import Changes
from storage.database import Connection
from storage.journal import Draft, Journal, read, read_many, read_one
from storage.pending import defer
from storage.projections import project
from storage.rows import fetch
from storage.search_index import index_messages
from storage.tables import ArtifactRow, EventRow, RunRow, SessionRow

PAGE = 500
_COPIED = RunError(code="copied", message="The copy of the log ends during this call.")


class Stored(NamedTuple):
    """An event as it is kept."""

    id: str
    seq: int
    run_id: str | None
    payload: dict[str, JsonValue]
    created_at: datetime
    processed_at: datetime | None
    private: dict[str, JsonValue] | None = None


@dataclass
class Tally:
    """What a log says of its runs and its session: the projections of all its events, one after the other."""

    runs: dict[str, Changes] = field(default_factory=dict[str, Changes])
    session: Changes = field(default_factory=Changes)
    """Of what its primary thread says."""

    def take(self, payload: EventPayload, moment: datetime, run_id: str | None, *, is_subagents: bool) -> None:
        on_run = Changes() if run_id is None else self.runs.setdefault(run_id, Changes())
        project(payload, moment, on_run, Changes() if is_subagents else self.session)


@dataclass
class _Open:
    """What a run had begun and not ended."""

    call: tuple[str, ModelRequestStart, datetime] | None = None
    approvals: dict[str, str] = field(default_factory=dict[str, str])
    """The tool uses that people were asked about, by approval."""

    def take(self, id: str, payload: EventPayload, moment: datetime) -> None:
        match payload:
            case ModelRequestStart():
                self.call = (id, payload, moment)
            case ModelRequestEnd():
                self.call = None
            case ApprovalRequested(approval_id=approval, tool_use_id=use):
                self.approvals[approval] = use
            case ApprovalResolved(approval_id=approval) | ApprovalExpired(approval_id=approval):
                self.approvals.pop(approval, None)
            case ApprovalCancelled(approval_id=approval):
                self.approvals.pop(approval, None)
            case _:
                pass

    def drafts(self) -> list[Draft]:
        """The events that end it."""
        ends: list[Draft] = []
        if self.call is not None:
            id, start, moment = self.call
            took = max(0, round((now() - moment).total_seconds() * 1000))
            end = ModelRequestEnd(
                model_request_start_id=id,
                is_error=True,
                model_usage=Usage(),
                duration_ms=took,
                attempt=start.attempt,
                error=_COPIED,
            )
            ends.append(Draft(end))
        return ends + [Draft(ApprovalCancelled(approval_id=id, tool_use_id=use)) for id, use in self.approvals.items()]


class LogCopy:
    """Writes a copy: the session's row first, then `take` page by page, then `close`."""

    def __init__(
        self, connection: Connection, session: SessionRow, renaming: Renaming, selection: Selection, runs: Sequence[RunRow]
    ) -> None:
        """`runs`: those of the log, in the order in which they began."""
        self._connection = connection
        self._session = session
        self._renaming = renaming
        self._half_thoughts = selection.half_thoughts
        self._runs = [_copied(row, session, renaming) for row in runs]
        self._threads = {row.id: row.thread_id for row in self._runs}
        self._tally = Tally()
        self._open: dict[str, _Open] = {}
        self.count = 0

    async def take(self, events: Iterable[Stored], artifacts: Collection[str] = ()) -> None:
        """The next events of the log. `artifacts`: of what was published, by its old id, what is there too."""
        rows: list[dict[str, Any]] = []
        said_here: list[Event] = []
        published: list[dict[str, Any]] = []
        deferred: list[tuple[str, str]] = []
        for event in events:
            if event.id in self._renaming.dropped or self._renaming.names_dropped(event.payload):
                continue
            id, seq = self._renaming[event.id], self._renaming.next_seq(event.seq)
            payload = self._renaming.members(event.payload)
            if event.id in self._half_thoughts:
                payload["interrupted"] = True
            said = payloads.validate_python(payload)
            run_id = None if event.run_id is None else self._renaming[event.run_id]
            thread_id = None if run_id is None else self._threads[run_id]
            self._tally.take(said, event.created_at, run_id, is_subagents=thread_id is not None)
            if run_id is not None:
                self._open.setdefault(run_id, _Open()).take(id, said, event.created_at)
            if isinstance(said, AgentArtifact) and event.payload["artifact_id"] in artifacts:
                published.append(_artifact(said, self._session.id, run_id or "", event.created_at))
            if isinstance(said, SessionSteer) and said.status == "deferred" and run_id is not None:
                deferred.append((said.event_id, run_id))
            if isinstance(said, UserMessage | AgentMessage):
                said_here.append(
                    Event(
                        id=id,
                        seq=seq,
                        session_id=self._session.id,
                        run_id=run_id,
                        thread_id=thread_id,
                        created_at=event.created_at,
                        processed_at=event.processed_at,
                        payload=said,
                    )
                )
            rows.append(
                {
                    "session_id": self._session.id,
                    "seq": seq,
                    "id": id,
                    "run_id": run_id,
                    "thread_id": thread_id,
                    "type": said.type,
                    "append_key": None,
                    "append_index": 0,
                    "created_at": event.created_at,
                    "processed_at": event.processed_at,
                    "payload": payload,
                    "private": None if event.private is None else self._renaming.members(event.private),
                }
            )
        self.count += len(rows)
        if rows:
            await self._connection.execute(insert(EventRow), rows)
            await index_messages(self._connection, said_here)
        if published:
            await self._connection.execute(insert(ArtifactRow), published)
        for message, run_id in deferred:
            await defer(self._connection, [message], run_id)

    async def close(self, journal: Journal, reason: str) -> None:
        """Write the rows of the runs and the session, and end what the copy leaves open."""
        for row in self._runs:
            _apply(row, self._tally.runs.get(row.id, Changes()))
        if self._runs:
            await self._connection.execute(insert(RunRow), [row.model_dump() for row in self._runs])
        said = self._tally.session
        columns = {
            "last_seq": self.count,
            "message_count": said.add.get("message_count", 0),
            "last_message": said.set.get("last_message"),
            "status": "idle",
        }
        mine = col(SessionRow.id) == self._session.id
        await self._connection.execute(update(SessionRow).where(mine).values(**columns))
        for row in reversed(self._runs):  # sub-agents before the runs that they work for
            if not RunStatus(row.status).over:
                ends = self._open.get(row.id, _Open()).drafts()
                idle = Draft(SessionIdle(stop_reason=StopReason(type="interrupted")))
                await journal.append(self._session.id, row.id, [*ends, idle, Draft(RunCancelled(reason=reason))])


def _copied(row: RunRow, session: SessionRow, renaming: Renaming) -> RunRow:
    """The run's row as it was at its beginning, before its events are told. What it used was used elsewhere."""
    id = renaming[row.id]
    return RunRow(
        **row.model_dump(include={"kind", "agent_id", "agent_version", "agent_name", "model", "limits", "meta", "created_at"}),
        id=id,
        workspace_id=session.workspace_id,
        session_id=session.id,
        copied_from=row.id,
        parent_run_id=None if row.parent_run_id is None else renaming[row.parent_run_id],
        thread_id=None if row.thread_id is None else renaming[row.thread_id],
        depth_left=row.depth_left,
        status=RunStatus.QUEUED,
        touched_at=now(),
    )


def _apply(row: RunRow, changes: Changes) -> None:
    for column, value in changes.set.items():
        if column not in _USED:
            setattr(row, column, value)
    row.step_count = changes.add.get("step_count", 0)


_USED = frozenset({"usage_estimated", "cost_nano_usd"})


def _artifact(said: AgentArtifact, session_id: str, run_id: str, moment: datetime) -> dict[str, Any]:
    columns = said.model_dump(include={"name", "description", "media_type", "size_bytes", "sha256", "path"})
    return ArtifactRow(id=said.artifact_id, session_id=session_id, run_id=run_id, created_at=moment, **columns).model_dump()


_TOLD = case((col(EventRow.type).in_(("session.thread_created", "session.steer")), col(EventRow.payload)))
_OUTLINE = (
    col(EventRow.id),
    col(EventRow.seq),
    col(EventRow.type),
    col(EventRow.run_id),
    col(EventRow.thread_id).is_not(None).label("is_subagents"),
    _TOLD.label("told"),
)


async def outline(connection: Connection, session_id: str, last_seq: int) -> list[Outline]:
    """The log up to there, and how the turn that is open there ended, if it says nothing more."""
    found = await _outline(connection, col(EventRow.session_id) == session_id, col(EventRow.seq) <= last_seq)
    turn = open_turn(found)
    if turn is None:
        return found
    mine = (col(EventRow.session_id) == session_id, col(EventRow.run_id) == turn, col(EventRow.seq) > last_seq)
    return found + quiet_end(await _outline(connection, *mine, limit=_FEW))


_FEW = 5
"""More than a run writes behind its last words."""


async def _outline(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> list[Outline]:
    statement = select(*_OUTLINE).where(*where).order_by(col(EventRow.seq)).limit(limit)
    return [
        Outline(
            row.id,
            row.seq,
            row.type,
            row.run_id,
            bool(row.is_subagents),
            *told(None if row.told is None else payloads.validate_python(row.told)),
        )
        for row in await connection.execute(statement)
    ]


async def stored(connection: Connection, session_id: str, events: Sequence[Outline]) -> list[Stored]:
    """Those events, which follow one another in the log but for what others wrote in between."""
    if not events:
        return []
    ids = {event.id for event in events}
    columns = (EventRow.id, EventRow.seq, EventRow.run_id, EventRow.payload, EventRow.created_at, EventRow.processed_at)
    statement = (
        select(*(col(column) for column in columns), col(EventRow.private))
        .where(
            col(EventRow.session_id) == session_id,
            col(EventRow.seq) >= events[0].seq,
            col(EventRow.seq) <= events[-1].seq,
        )
        .order_by(col(EventRow.seq))
    )
    return [Stored(*row) for row in await connection.execute(statement) if row.id in ids]


async def runs_of(connection: Connection, session_id: str, run_ids: Sequence[str]) -> list[RunRow]:
    """Those runs, in that order."""
    rows: dict[str, RunRow] = {}
    for at in range(0, len(run_ids), PAGE):
        mine = (col(RunRow.session_id) == session_id, col(RunRow.id).in_(run_ids[at : at + PAGE]))
        rows |= {row.id: row for row in await fetch(connection, RunRow, select(RunRow).where(*mine))}
    return [rows[id] for id in run_ids]


async def point_before(connection: Connection, session_id: str, event_id: str) -> int:
    """Where a log is cut to go on in place of that event: of a message, where the model was about to read it.

    Raises NotFound.
    """
    event = await read_one(connection, session_id, event_id)
    reader = event.for_run_id or event.run_id
    if event.type == "user.message" and reader is not None:
        start = {"span.model_request_start"}
        reads = await read(connection, session_id, after=event.seq, run_id=reader, types=start, limit=1)
        return (reads[0].seq if reads else event.seq) - 1
    return event.seq - 1


async def remembered_after(connection: Connection, session_id: str, seq: int) -> set[str]:
    """The tools of which it was decided further on for the whole session. Out of the log: a copy has no approvals but there."""
    found: set[str] = set()
    while True:
        page = await read(connection, session_id, after=seq, types={"approval.resolved"}, limit=PAGE)
        uses = [e.payload.tool_use_id for e in page if isinstance(e.payload, ApprovalResolved) and e.payload.remembered]
        for use in await read_many(connection, uses):
            match use.payload:
                case AgentToolUse(name=name) | AgentCustomToolUse(name=name):
                    found.add(name)
                case AgentMcpToolUse(mcp_server_name=server, name=name):
                    found.add(tool_name(server, name))
                case _:
                    pass
        if len(page) < PAGE:
            return found
        seq = page[-1].seq


async def artifacts_until(connection: Connection, session_id: str, last_seq: int) -> list[str]:
    """The ids of what was published in that part of the log; without what an import only tells of."""
    found: list[str] = []
    after = 0
    while True:
        page = await read(connection, session_id, after=after, before=last_seq + 1, types={"agent.artifact"}, limit=PAGE)
        named = [event.payload.artifact_id for event in page if isinstance(event.payload, AgentArtifact)]
        mine = (col(ArtifactRow.session_id) == session_id, col(ArtifactRow.id).in_(named))
        found += (await connection.execute(select(col(ArtifactRow.id)).where(*mine))).scalars()
        if len(page) < PAGE:
            return found
        after = page[-1].seq
