"""A session as one JSON document: what `export` writes, and what `import` reads.

Written page by page up to where the log ends when it is asked for. Each event and each run stands on a line of its own.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from api.pages import Moment
from api.wire import ForkedFrom, forked_from
from domain.agent_tools import Policy, ToolName
from domain.agents import MAX_METADATA, AgentVersion, Limits, Metadata
from domain.clock import now, wire
from domain.events import ThreadCreated
from domain.multiagent import Multiagent, RosterAgent, run_of_thread
from domain.runs import AgentRef, RunError, RunStatus, StopReason
from domain.sessions import MAX_QUEUE_DEPTH, QUEUE_DEPTH, OnBusy, Tags
from domain.usage import Cost, Usage, cost_of
from storage.agents import Agents
from storage.changes import Changes
from storage.copies import Tally, runs_of
from storage.database import Connection, Database
from storage.journal import read
from storage.runs import Runs
from storage.tables import RunRow, SessionRow

TYPE = "perdure.session"
VERSION = 1
PAGE = 500


RunMetadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA + 1)
]
"""A run of a batch has its `custom_id` beside what was given."""


class AgentPlace(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    version: int


class DocumentSession(BaseModel):
    """What a session was set to be. What it has come to, its events say."""

    model_config = ConfigDict(extra="forbid")

    id: str
    agent: AgentPlace
    title: Annotated[str, Field(max_length=500)] | None
    metadata: Metadata
    tags: Tags = ()
    environment_id: Annotated[str, Field(min_length=1, max_length=100)]
    on_busy: OnBusy
    queue_depth: Annotated[int, Field(ge=1, le=MAX_QUEUE_DEPTH)] = QUEUE_DEPTH
    permissions: Annotated[dict[ToolName, Policy], Field(max_length=1_000)]
    """People may have decided for the whole session about more tools than a request may name."""
    forked_from: ForkedFrom | None
    created_at: Moment
    updated_at: Moment
    archived_at: Moment | None


class DocumentRun(BaseModel):
    """A run as the log up to its end tells it. The last events of a run that is not over are still to come."""

    model_config = ConfigDict(extra="forbid")

    id: str
    kind: Literal["turn", "task", "subagent"]
    agent: AgentRef
    status: RunStatus
    stop_reason: StopReason | None
    output: str | None
    plan: list[JsonValue] | None
    error: RunError | None
    usage: Usage
    cost: Cost | None
    step_count: int
    attempt: int
    limits: Limits
    parent_run_id: str | None
    metadata: RunMetadata
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


async def agents_of(connection: Connection, session: SessionRow) -> list[AgentVersion]:
    """The session's agent, then those of its sub-agents and all that they may delegate to."""
    agents = Agents(connection, session.workspace_id)
    first = (session.agent_id, session.agent_version)
    found: dict[tuple[str, int], AgentVersion] = {}
    level = {first, *await Runs(connection).agents_in(session.id)}
    while level := level - found.keys():
        more = await agents.many(level)
        found |= more
        level = {pin for agent in more.values() for pin in _roster(agent.config.multiagent)}
        level &= level - found.keys()
    return [found.pop(first), *sorted(found.values(), key=lambda agent: (agent.id, agent.version))]


def _roster(multiagent: Multiagent | None) -> list[tuple[str, int]]:
    entries = () if multiagent is None else multiagent.agents
    return [(entry.id, entry.version or 1) for entry in entries if isinstance(entry, RosterAgent)]


async def document(database: Database, session: SessionRow, agents: Sequence[AgentVersion]) -> AsyncGenerator[bytes]:
    """The document, in pieces. `agents` as `agents_of` finds them."""
    head = {
        "type": TYPE,
        "version": VERSION,
        "exported_at": wire(now()),
        "last_seq": session.last_seq,
        "files_included": False,
        "session": _session(session).model_dump(mode="json"),
        "agent": _agent(agents[0]),
        "subagents": [_agent(agent) for agent in agents[1:]],
    }
    yield to_json(head)[:-1] + b',\n"events":['
    tally, run_ids, after = Tally(), dict[str, None](), 0
    while after < session.last_seq:
        async with database.read() as connection:
            page = await read(connection, session.id, after=after, before=session.last_seq + 1, limit=PAGE)
        if not page:
            # Deleted meanwhile: what is there must not look like all of it.
            raise RuntimeError(f"session {session.id} went away while it was exported")
        for event in page:
            tally.take(event.payload, event.created_at, event.run_id, is_subagents=event.thread_id is not None)
            if event.run_id is not None:
                run_ids[event.run_id] = None
            if isinstance(event.payload, ThreadCreated):
                run_ids[run_of_thread(event.payload.session_thread_id)] = None
        lines = b",".join(b"\n" + to_json(event.wire()) for event in page)
        yield b"," + lines if after else lines
        after = page[-1].seq
    async with database.read() as connection:
        rows = await runs_of(connection, session.id, list(run_ids))
    runs = [_run(row, tally.runs.get(row.id, Changes())) for row in rows]
    yield b'\n],\n"runs":[' + b",".join(b"\n" + to_json(run.model_dump(mode="json")) for run in runs)
    used = {"usage": total_usage(tally), "cost": total_cost(tally)}
    yield b"\n],\n" + to_json(used)[1:] + b"\n"


def total_usage(tally: Tally) -> Usage:
    return sum((_usage(changes) for changes in tally.runs.values()), Usage())


def total_cost(tally: Tally) -> Cost | None:
    """None where nothing was called, or the price of a call is unknown."""
    called = [changes for changes in tally.runs.values() if "model_call_count" in changes.add]
    known = [changes for changes in called if "cost_nano_usd" not in changes.set]
    if not called or len(known) < len(called):
        return None
    return cost_of(sum(changes.add.get("cost_nano_usd", 0) for changes in known))


def _usage(changes: Changes) -> Usage:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    counts = {name: changes.add.get(name, 0) for name in names}
    return Usage(**counts, estimated=bool(changes.set.get("usage_estimated", False)))


def _agent(agent: AgentVersion) -> dict[str, Any]:
    return {"id": agent.id, "version": agent.version, **agent.config.model_dump(mode="json")}


def _session(row: SessionRow) -> DocumentSession:
    columns = row.model_dump(
        include={
            "id",
            "title",
            "tags",
            "environment_id",
            "on_busy",
            "queue_depth",
            "permissions",
            "created_at",
            "updated_at",
            "archived_at",
        }
    )
    place = AgentPlace(id=row.agent_id, version=row.agent_version)
    return DocumentSession.model_validate({**columns, "agent": place, "metadata": row.meta, "forked_from": forked_from(row)})


def _run(row: RunRow, said: Changes) -> DocumentRun:
    told = said.set
    alone = Tally(runs={row.id: said})
    return DocumentRun.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "agent": AgentRef(id=row.agent_id, version=row.agent_version, name=row.agent_name),
            "status": told.get("status", RunStatus.QUEUED),
            "stop_reason": {"type": told["stop_type"]} if told.get("stop_type") else None,
            "output": told.get("output"),
            "plan": told.get("plan"),
            "error": told.get("error"),
            "usage": total_usage(alone),
            "cost": total_cost(alone),
            "step_count": said.add.get("step_count", 0),
            "attempt": told.get("attempt", 1),
            "limits": row.limits,
            "parent_run_id": row.parent_run_id,
            "metadata": row.meta,
            "created_at": row.created_at,
            "started_at": told.get("started_at"),
            "finished_at": told.get("finished_at"),
        }
    )
