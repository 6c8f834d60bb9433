"""/v1/sessions/{id}/threads: a session's own thread, and one for each sub-agent. Their streams are in `streams.py`."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from api.auth import SessionsRead
from api.client_access import hidden_from
from api.errors import PROBLEMS
from api.frames import for_sdk, sdk_types
from api.pages import Cursor, EventLimit, List, listed, seq_cursor, seq_of
from api.sse import is_sdk
from api.transaction import TransactionalRoute, Unit, UnitOfWork
from api.wire import Agent, Stats, Time, usage_of
from domain.agents import AgentVersion
from domain.clock import now
from domain.multiagent import thread_of
from domain.runs import RunStatus
from domain.sdk_events import CROSS_POSTED
from domain.usage import Cost, Usage, cost_of
from storage.agents import Agents
from storage.journal import read
from storage.runs import RunFilter, Runs
from storage.sessions import Sessions
from storage.tables import RunRow, SessionRow

router = APIRouter(
    prefix="/v1/sessions/{session_id}/threads", tags=["threads"], route_class=TransactionalRoute, responses=PROBLEMS
)

ThreadStatus = Literal["running", "idle", "rescheduling", "terminated"]
_STATUSES: dict[RunStatus, ThreadStatus] = {
    RunStatus.QUEUED: "running",
    RunStatus.RUNNING: "running",
    RunStatus.WAITING: "idle",
    RunStatus.PAUSED: "idle",
    RunStatus.COMPLETED: "idle",
    RunStatus.FAILED: "terminated",
    RunStatus.CANCELLED: "terminated",
    RunStatus.TERMINATED: "terminated",
}
_FIRST = "primary"
"""The cursor behind the primary thread."""


class Thread(BaseModel):
    """The `anthropic` package's BetaManagedAgentsSessionThread, and the run that works on it."""

    type: Literal["session_thread"] = "session_thread"
    id: str
    session_id: str
    parent_thread_id: str | None
    """None: it is the primary thread."""
    agent: Agent
    status: ThreadStatus
    title: str | None = None
    run_id: str | None
    """Of the primary thread: the run that is active in the session."""
    usage: Usage
    """Its own, without that of the threads below it; that of the primary thread is the whole session's."""
    cost: Cost | None
    stats: Stats
    created_at: Time
    updated_at: Time
    archived_at: Time | None = None


@router.get("")
async def list_threads(
    session_id: str,
    caller: SessionsRead,
    unit: UnitOfWork,
    limit: EventLimit = 100,
    page: Cursor = None,
    statuses: Annotated[list[ThreadStatus] | None, Query()] = None,
    statuses_brackets: Annotated[list[ThreadStatus] | None, Query(alias="statuses[]", include_in_schema=False)] = None,
) -> List[Thread]:
    """The primary thread, then those of sub-agents in the order in which they began."""
    session = await Sessions(unit.connection, caller.workspace_id).get(session_id)
    wanted = statuses or statuses_brackets
    threads: list[Thread] = []
    if page is None:
        primary = await _primary(unit, session)
        threads += [primary] if wanted is None or primary.status in wanted else []
    full = len(threads) == limit
    of_runs = [status for status, said in _STATUSES.items() if wanted is None or said in wanted]
    if not of_runs:  # none of a run is ever so
        return listed(threads, None)
    found = await Runs(unit.connection).find(
        caller.workspace_id,
        RunFilter(of_runs if wanted else (), session_id=session_id, subagents=True),
        limit=1 if full else limit - len(threads),
        cursor=None if page == _FIRST else page,
        descending=False,
    )
    if full:
        return listed(threads, _FIRST if found.rows else None)
    agents = await Agents(unit.connection, caller.workspace_id).many((r.agent_id, r.agent_version) for r in found.rows)
    roots = await Runs(unit.connection).on_primary(row.parent_run_id for row in found.rows)
    threads += [_of_run(unit, row, agents[row.agent_id, row.agent_version], roots) for row in found.rows]
    return listed(threads, found.next_page)


@router.get("/{thread_id}")
async def get_thread(session_id: str, thread_id: str, caller: SessionsRead, unit: UnitOfWork) -> Thread:
    session = await Sessions(unit.connection, caller.workspace_id).get(session_id)
    if thread_id == thread_of(session_id):
        return await _primary(unit, session)
    row = await Runs(unit.connection).on_thread(session_id, thread_id)
    agent = await Agents(unit.connection, caller.workspace_id).get(row.agent_id, row.agent_version)
    return _of_run(unit, row, agent, await Runs(unit.connection).on_primary([row.parent_run_id]))


@router.get("/{thread_id}/events")
async def list_thread_events(
    request: Request,
    session_id: str,
    thread_id: str,
    caller: SessionsRead,
    unit: UnitOfWork,
    limit: EventLimit = 100,
    page: Cursor = None,
) -> List[dict[str, Any]]:
    """The thread's part of the session's log, in order; of the primary thread, with the states of the others."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    is_primary = thread_id == thread_of(session_id)
    run_id = None if is_primary else (await Runs(unit.connection).on_thread(session_id, thread_id)).id
    after = 0 if page is None else seq_of(page)
    primary = CROSS_POSTED if is_primary else None
    types = sdk_types(None) if is_sdk(request) else None
    events = await read(unit.connection, session_id, after=after, run_id=run_id, types=types, primary=primary, limit=limit + 1)
    following = seq_cursor(events[limit - 1].seq) if len(events) > limit else None
    hidden = hidden_from(caller)
    shown = [event.wire() for event in events[:limit] if event.type not in hidden]
    return listed([for_sdk(event) for event in shown] if is_sdk(request) else shown, following)


async def _primary(unit: Unit, session: SessionRow) -> Thread:
    agent = await Agents(unit.connection, session.workspace_id).get(session.agent_id, session.agent_version)
    return Thread.model_validate(
        {
            "id": thread_of(session.id),
            "session_id": session.id,
            "parent_thread_id": None,
            "agent": _shown(agent, unit),
            "status": session.status,
            "title": session.title,
            "run_id": session.active_run_id,
            "usage": usage_of(session),
            "cost": cost_of(session.cost_nano_usd),
            "stats": {
                "active_seconds": session.active_seconds,
                "duration_seconds": (session.updated_at - session.created_at).total_seconds(),
            },
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "archived_at": session.archived_at,
        }
    )


def _of_run(unit: Unit, row: RunRow, agent: AgentVersion, roots: Collection[str]) -> Thread:
    """`roots`: the runs on the primary thread, among those that delegated."""
    end = row.finished_at or now()
    by = row.parent_run_id or ""
    return Thread(
        id=row.thread_id or "",
        session_id=row.session_id,
        parent_thread_id=thread_of(row.session_id if by in roots else by),
        agent=_shown(agent, unit),
        status=_STATUSES[RunStatus(row.status)],
        title=row.meta.get("title"),
        run_id=row.id,
        usage=usage_of(row),
        cost=cost_of(row.cost_nano_usd),
        stats=Stats(
            active_seconds=0.0 if row.started_at is None else (end - row.started_at).total_seconds(),
            duration_seconds=(end - row.created_at).total_seconds(),
        ),
        created_at=row.created_at,
        updated_at=row.touched_at,
    )


def _shown(agent: AgentVersion, unit: Unit) -> Agent:
    return Agent.of(agent) if unit.caller.session_id is None else Agent.of(agent).to_viewers()
