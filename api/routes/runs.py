"""/v1/runs"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.auth import RunsRead, RunsWrite
from api.client_access import hidden_from
from api.content import MessageContent, message_of
from api.errors import PROBLEMS, QUEUE_FULL
from api.pages import CreatedAt, Cursor, EventLimit, Limit, List, Order, listed, seq_cursor, seq_of
from api.routes.sessions import AgentChoice, Resources, choose_agent, mounted_files
from api.services.runs import NewRun
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import run_of
from domain.agents import Limits, Metadata
from domain.errors import Invalid, Pointer
from domain.runs import Run, RunStatus
from storage.agents import Agents
from storage.journal import read
from storage.runs import RunFilter, Runs
from storage.sessions import Sessions

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=TransactionalRoute, responses=PROBLEMS)

Reason = Annotated[str, Field(max_length=2000)]


class RunCreate(BaseModel):
    """Without `session_id` a session with this one turn is made."""

    model_config = ConfigDict(extra="forbid")

    agent: AgentChoice | None = None
    """Required without `session_id`; a session keeps the agent it began with."""
    input: MessageContent
    session_id: str | None = None
    limits: Limits | None = None
    metadata: Metadata = {}
    resources: Resources = ()
    """Files for the session's directory, there before the run's first tool call."""


class Pause(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mode: Literal["step", "now"] = "step"


class Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason | None = None


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    content: MessageContent


@router.post("", status_code=201, responses=QUEUE_FULL)
async def start_run(body: RunCreate, caller: RunsWrite, unit: UnitOfWork, service: TheService, response: Response) -> Run:
    """Start a run and return at once; follow it at `Content-Location`."""
    session_id = await _session_for(body, unit, service)
    new = NewRun(
        message_of(body.input),
        content_at="/input",
        kind="turn" if body.session_id else "task",
        limits=body.limits,
        metadata=body.metadata,
        own_run=True,
    )
    _, row = await service.runs.submit(unit, session_id, new)
    response.headers["Location"] = f"/v1/runs/{row.id}"
    response.headers["Content-Location"] = f"/v1/runs/{row.id}/events/stream"
    return run_of(row, service.temporal_ui)


async def _session_for(body: RunCreate, unit: UnitOfWork, service: TheService) -> str:
    workspace_id = unit.caller.workspace_id
    if body.session_id is None:
        if body.agent is None:
            fault = Pointer(pointer="/agent", detail="Name an agent, or the session that has one.")
            raise Invalid(fault.detail, fault)
        agent = await choose_agent(unit, service, body.agent)
        resources = await mounted_files(unit, body.resources)
        return (await Sessions(unit.connection, workspace_id).create(agent.id, agent.version, resources=resources)).id
    session = await Sessions(unit.connection, workspace_id).get(body.session_id, lock=bool(body.resources))
    if isinstance(body.agent, str):
        named = await Agents(unit.connection, workspace_id).resolve(body.agent)
        if named.id != session.agent_id:
            fault = Pointer(pointer="/agent", detail=f"The session belongs to agent {session.agent_id}.")
            raise Invalid(fault.detail, fault)
    elif body.agent is not None:
        fault = Pointer(pointer="/agent", detail="A session keeps the agent it began with: leave `agent` out.")
        raise Invalid(fault.detail, fault)
    if body.resources:
        there = [resource["path"] for resource in session.resources or ()]
        await Sessions(unit.connection, workspace_id).add_resources(session, await mounted_files(unit, body.resources, there))
    return session.id


@router.get("")
async def list_runs(
    caller: RunsRead,
    unit: UnitOfWork,
    service: TheService,
    created: CreatedAt,
    limit: Limit = 20,
    page: Cursor = None,
    order: Order = "desc",
    status: Annotated[list[RunStatus] | None, Query()] = None,
    agent_id: str | None = None,
    session_id: str | None = None,
    parent_run_id: str | None = None,
    batch_id: str | None = None,
) -> List[Run]:
    """Runs, the newest first; `parent_run_id` finds the sub-agents that a run has started, `batch_id` a batch's."""
    wanted = RunFilter(
        status or (),
        agent_id,
        session_id,
        parent_run_id,
        created_after=created.after,
        created_before=created.before,
        batch_id=batch_id,
    )
    found = await Runs(unit.connection).find(caller.workspace_id, wanted, limit=limit, cursor=page, descending=order == "desc")
    return listed([run_of(row, service.temporal_ui) for row in found.rows], found.next_page)


@router.get("/{run_id}")
async def get_run(run_id: str, caller: RunsRead, unit: UnitOfWork, service: TheService) -> Run:
    return run_of(await Runs(unit.connection).get(run_id, caller.workspace_id), service.temporal_ui)


@router.get("/{run_id}/events")
async def list_run_events(
    run_id: str, caller: RunsRead, unit: UnitOfWork, limit: EventLimit = 20, page: Cursor = None
) -> List[dict[str, Any]]:
    """The run's part of its session's log, in order."""
    row = await Runs(unit.connection).get(run_id, caller.workspace_id)
    after = 0 if page is None else seq_of(page)
    events = await read(unit.connection, row.session_id, after=after, run_id=run_id, limit=limit + 1)
    following = seq_cursor(events[limit - 1].seq) if len(events) > limit else None
    hidden = hidden_from(caller)
    return listed([event.wire() for event in events[:limit] if event.type not in hidden], following)


@router.post("/{run_id}/pause", status_code=202)
async def pause_run(run_id: str, caller: RunsWrite, unit: UnitOfWork, service: TheService, body: Pause | None = None) -> Run:
    """Pause at the next step boundary; mode `now` interrupts the model call in flight and keeps its text."""
    row = await service.runs.pause(unit, run_id, (body or Pause()).mode)
    return run_of(row, service.temporal_ui)


@router.post("/{run_id}/resume", status_code=202)
async def resume_run(run_id: str, caller: RunsWrite, unit: UnitOfWork, service: TheService) -> Run:
    return run_of(await service.runs.resume(unit, run_id), service.temporal_ui)


@router.post("/{run_id}/cancel", status_code=202)
async def cancel_run(run_id: str, caller: RunsWrite, unit: UnitOfWork, service: TheService, body: Stop | None = None) -> Run:
    """Stop it gracefully: what was written is kept. `run.cancelled` confirms that it has stopped."""
    return run_of(await service.runs.cancel(unit, run_id, (body or Stop()).reason), service.temporal_ui)


@router.post("/{run_id}/terminate", status_code=202)
async def terminate_run(run_id: str, caller: RunsWrite, unit: UnitOfWork, service: TheService, body: Stop | None = None) -> Run:
    """Kill it where it stands."""
    return run_of(await service.runs.terminate(unit, run_id, (body or Stop()).reason), service.temporal_ui)


@router.post("/{run_id}/retry", status_code=202)
async def retry_run(run_id: str, caller: RunsWrite, unit: UnitOfWork, service: TheService) -> Run:
    """Run a failed or stopped run again from where its log stands."""
    return run_of(await service.runs.retry(unit, run_id), service.temporal_ui)


@router.post("/{run_id}/input", status_code=202)
async def send_input(run_id: str, body: Input, caller: RunsWrite, unit: UnitOfWork, service: TheService) -> Run:
    """Answer the question that the run waits with; else a message that its next model call reads."""
    content = message_of(body.content)
    if await service.answers.answer_first(unit, run_id, content):
        return run_of(await Runs(unit.connection).get(run_id), service.temporal_ui)
    return run_of(await service.runs.input(unit, run_id, content), service.temporal_ui)
