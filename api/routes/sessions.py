"""/v1/sessions"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from api.auth import SessionsRead, SessionsWrite
from api.content import MessageContent, message_of
from api.errors import PROBLEMS, QUEUE_FULL
from api.pages import CreatedAt, Cursor, Limit, List, Order, listed
from api.routes.events import UserMessageEvent
from api.services.overrides import AgentWithOverrides, SessionAgentUpdate, overridden
from api.services.rosters import pinned
from api.services.runs import NewRun
from api.services.search import matching
from api.state import TheService
from api.transaction import TransactionalRoute, Unit, UnitOfWork
from api.wire import Session, run_of
from domain.agent_tools import Policy, ToolName
from domain.agents import MAX_METADATA, AgentConfig, AgentVersion, Metadata
from domain.clock import now, wire
from domain.errors import Conflict, Invalid, Pointer, ToolFailed
from domain.events import SessionUpdated
from domain.files import FileResource, MountedFile
from domain.ids import new_id
from domain.runs import Run
from domain.sessions import MAX_QUEUE_DEPTH, QUEUE_DEPTH, OnBusy, SessionStatus, Tags
from storage.agents import Agents
from storage.artifacts import Artifacts
from storage.files import Files
from storage.journal import Draft
from storage.labels import Label
from storage.queues import Queues
from storage.sessions import SessionFilter, Sessions
from storage.tables import SessionRow
from storage.titles import Titles
from tools.store import mount_path

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=TransactionalRoute, responses=PROBLEMS)

Title = Annotated[
    Annotated[str, Field(max_length=500)] | None, AfterValidator(lambda title: title if title and title.strip() else None)
]
"""A blank one is none."""


QueueDepth = Annotated[int, Field(ge=1, le=MAX_QUEUE_DEPTH, strict=True)]
MAX_PERMISSIONS = 200
Permissions = Annotated[dict[ToolName, Policy], Field(max_length=MAX_PERMISSIONS)]
Resources = Annotated[tuple[FileResource, ...], Field(max_length=100)]


class AgentPin(BaseModel):
    """An agent at a version."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["agent"] | None = None
    id: str
    version: Annotated[int, Field(ge=1, le=2_000_000_000, strict=True)] | None = None


def _kind_of_choice(choice: object) -> str:
    if isinstance(choice, str):
        return "name"
    if isinstance(choice, dict) and cast("dict[str, object]", choice).get("type") == "agent_with_overrides":
        return "overrides"
    return "pin" if isinstance(choice, dict) and "id" in cast("dict[str, object]", choice) else "inline"


AgentChoice = Annotated[
    Annotated[str, Field(min_length=1, max_length=256), Tag("name")]
    | Annotated[AgentPin, Tag("pin")]
    | Annotated[AgentWithOverrides, Tag("overrides")]
    | Annotated[AgentConfig, Tag("inline")],
    Discriminator(_kind_of_choice),
]
"""Told apart before they are checked, so that a fault is reported once and where it is."""


async def choose_agent(
    unit: Unit, service: TheService, choice: str | AgentPin | AgentWithOverrides | AgentConfig
) -> AgentVersion:
    """By id or name, at a version, with overrides, or defined on the spot. Raises NotFound, Archived, Invalid."""
    agents = Agents(unit.connection, unit.caller.workspace_id)
    if isinstance(choice, str):
        return await agents.resolve(choice)
    if isinstance(choice, AgentPin):
        return await agents.resolve(choice.id, choice.version)
    if isinstance(choice, AgentWithOverrides):
        return await overridden(agents, service.catalog, await agents.resolve(choice.id, choice.version), choice)
    await service.catalog.check(choice)
    return await agents.create(await pinned(agents, choice), inline=True)


async def mounted_files(unit: Unit, wanted: Sequence[FileResource], beside: Sequence[str] = ()) -> list[MountedFile]:
    """What is to be put into a session's directory, `beside` those paths. Raises Invalid."""
    if not wanted:
        return []
    rows = await Files(unit.connection, unit.caller.workspace_id).many([resource.file_id for resource in wanted])
    moment = wire(now())
    taken = set(beside)
    found: list[MountedFile] = []
    for index, resource in enumerate(wanted):
        row = rows.get(resource.file_id)
        if row is None:
            raise _fault(f"/resources/{index}/file_id", f"There is no file {resource.file_id}.")
        try:
            path = mount_path(resource.mount_path, row.filename)
        except ToolFailed as error:
            raise _fault(f"/resources/{index}/mount_path", error.message) from error
        if path in taken:
            raise _fault(f"/resources/{index}/mount_path", f"Two files would be at {path}: give them paths of their own.")
        taken.add(path)
        found.append(MountedFile(id=new_id("sesrsc"), file_id=row.id, path=path, created_at=moment))
    return found


def _check_count(merged: Mapping[str, str], most: int, pointer: str) -> None:
    """Raises Invalid where what was there and what is added are too many together."""
    if len(merged) > most:
        raise _fault(pointer, f"With those that are there these are {len(merged)}, and may be {most}.")


def _fault(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, Pointer(pointer=pointer, detail=detail))


class SessionCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: AgentChoice
    environment_id: Annotated[str, Field(min_length=1, max_length=100)] = "env_default"
    title: Title = None
    metadata: Metadata = {}
    tags: Tags = ()
    on_busy: OnBusy = "queue"
    queue_depth: QueueDepth = QUEUE_DEPTH
    """How many messages may wait for their turn."""
    permissions: Permissions = {}
    """Policies by a tool's name that hold in this session instead of the agent's."""
    resources: Resources = ()
    vault_ids: tuple[()] = ()
    initial_events: Annotated[list[UserMessageEvent], Field(max_length=50)] = []
    """Messages that it begins with, as if they were sent at once; more of them may wait than `queue_depth`."""


class SessionUpdate(BaseModel):
    """Members left out stay; a null or empty `title` clears it; a null metadata value or permission removes it."""

    model_config = ConfigDict(extra="forbid")

    agent: SessionAgentUpdate | None = None
    """Other tools or MCP servers, from the next turn on. 409 while one runs."""
    title: Title = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)] | None], Field(max_length=16)
        ]
        | None
    ) = None
    tags: Tags | None = None
    """All of them, in place of those before."""
    on_busy: OnBusy | None = None
    queue_depth: QueueDepth | None = None
    permissions: Annotated[dict[ToolName, Policy | None], Field(max_length=200)] | None = None


class MessageCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    content: MessageContent
    on_busy: OnBusy | None = None
    """What it does while a turn runs; the session's own if left out."""
    client_event_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class MessageAccepted(BaseModel):
    event: dict[str, object]
    run: Run


class SessionDeleted(BaseModel):
    id: str
    type: Literal["session_deleted"] = "session_deleted"


async def session_of(unit: Unit, row: SessionRow) -> Session:
    (session,) = await _sessions(unit, [row])
    return session


async def _sessions(unit: Unit, rows: Sequence[SessionRow]) -> list[Session]:
    agents = await Agents(unit.connection, unit.caller.workspace_id).many((row.agent_id, row.agent_version) for row in rows)
    waiting = await Queues(unit.connection).lengths([row.id for row in rows])
    found = [Session.of(row, agents[row.agent_id, row.agent_version], waiting.get(row.id, 0)) for row in rows]
    if unit.caller.session_id is not None:
        return [session.model_copy(update={"agent": session.agent.to_viewers()}) for session in found]
    return found


@router.post("", status_code=201)
async def create_session(
    body: SessionCreate, caller: SessionsWrite, unit: UnitOfWork, service: TheService, response: Response
) -> Session:
    """Begin a conversation. It keeps the agent's version that is the newest now, or the one that is named."""
    agent = await choose_agent(unit, service, body.agent)
    row = await Sessions(unit.connection, caller.workspace_id).create(
        agent.id,
        agent.version,
        title=body.title,
        metadata=body.metadata,
        tags=tuple(dict.fromkeys(body.tags)),
        on_busy=body.on_busy,
        queue_depth=body.queue_depth,
        permissions=body.permissions,
        environment_id=body.environment_id,
        resources=await mounted_files(unit, body.resources),
    )
    for at, event in enumerate(body.initial_events):
        new = NewRun(
            message_of(event.content),
            on_busy="queue",
            initial=True,
            client_event_id=event.client_event_id,
            content_at=f"/initial_events/{at}/content",
        )
        await service.runs.submit(unit, row.id, new)
    response.headers["Location"] = f"/v1/sessions/{row.id}"
    response.headers["Content-Location"] = f"/v1/sessions/{row.id}/events/stream"
    return await session_of(unit, await Sessions(unit.connection, caller.workspace_id).get(row.id))


@router.get("")
async def list_sessions(
    caller: SessionsRead,
    unit: UnitOfWork,
    service: TheService,
    created: CreatedAt,
    limit: Limit = 20,
    page: Cursor = None,
    order: Order = "desc",
    agent_id: str | None = None,
    agent_version: Annotated[int | None, Query(ge=1, le=2_000_000_000)] = None,
    statuses: Annotated[list[SessionStatus] | None, Query()] = None,
    statuses_brackets: Annotated[list[SessionStatus] | None, Query(alias="statuses[]", include_in_schema=False)] = None,
    include_archived: bool = False,
    provider: Annotated[str | None, Query(max_length=250, description="As in `provider:name`")] = None,
    model: Annotated[str | None, Query(max_length=250, description="`provider:name`")] = None,
    tag: Annotated[list[str] | None, Query(max_length=20, description="All of them")] = None,
    metadata: Annotated[list[str] | None, Query(max_length=16, description="`key=value`; all of them")] = None,
    search: Annotated[str | None, Query(max_length=300, description='Words and "phrases", all of them')] = None,
    forked_from: Annotated[str | None, Query(description="Only forks of this session")] = None,
) -> List[Session]:
    """Sessions, the newest first; with `search` those whose title or one of whose messages has the words, the best first."""
    labels = [*(Label("tag", text) for text in tag or ()), *(Label("metadata", text) for text in metadata or ())]
    wanted = SessionFilter(
        agent_id,
        agent_version,
        statuses or statuses_brackets or (),
        created.after,
        created.before,
        include_archived,
        provider,
        model,
        labels,
        forked_from,
    )
    sessions = Sessions(unit.connection, caller.workspace_id)
    if search is not None and search.strip():
        found, following = await matching(unit.connection, sessions, search, wanted, service, limit=limit, cursor=page)
        shown = await _sessions(unit, [row for row, _ in found])
        matches = zip(shown, found, strict=True)
        return listed([session.model_copy(update={"match": match}) for session, (_, match) in matches], following)
    found = await sessions.find(wanted, limit=limit, cursor=page, descending=order == "desc")
    return listed(await _sessions(unit, found.rows), found.next_page)


@router.get("/{session_id}")
async def get_session(session_id: str, caller: SessionsRead, unit: UnitOfWork) -> Session:
    return await session_of(unit, await Sessions(unit.connection, caller.workspace_id).get(session_id))


@router.post("/{session_id}")
async def update_session(
    session_id: str, body: SessionUpdate, caller: SessionsWrite, unit: UnitOfWork, service: TheService
) -> Session:
    """Rename it, change its tags, its metadata, its agent's tools, or what a message to the busy session does."""
    sessions = Sessions(unit.connection, caller.workspace_id)
    row = await sessions.get(session_id, lock=True)
    if body.agent is not None:
        _refuse_active(row)
        agents = Agents(unit.connection, caller.workspace_id)
        agent = await overridden(agents, service.catalog, await agents.get(row.agent_id, row.agent_version), body.agent)
        await sessions.change(session_id, agent_id=agent.id, agent_version=agent.version)
    changes: dict[str, Any] = {
        "on_busy": body.on_busy or row.on_busy,
        "queue_depth": body.queue_depth or row.queue_depth,
    }
    if "title" in body.model_fields_set:
        row.title = body.title
        await Titles(unit.connection, caller.workspace_id).rename(session_id, body.title)
    if body.metadata is not None:
        both = {**row.meta, **body.metadata}
        changes["meta"] = row.meta = {key: value for key, value in both.items() if value is not None}
        _check_count(row.meta, MAX_METADATA, "/metadata")
    if body.permissions is not None:
        both = {**row.permissions, **body.permissions}
        changes["permissions"] = {name: policy for name, policy in both.items() if policy is not None}
        _check_count(changes["permissions"], MAX_PERMISSIONS, "/permissions")
    if body.tags is not None:
        changes["tags"] = list(dict.fromkeys(body.tags))
    await sessions.change(session_id, **changes)
    await unit.journal.append(session_id, None, [Draft(SessionUpdated(title=row.title, metadata=row.meta))])
    return await session_of(unit, await sessions.get(session_id))


@router.post("/{session_id}/archive")
async def archive_session(session_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService) -> Session:
    """Keep it to be read; it takes no more messages. A turn that waits is cancelled; 409 while one is at work."""
    await service.runs.archive(unit, session_id)
    return await session_of(unit, await Sessions(unit.connection, caller.workspace_id).get(session_id))


@router.delete("/{session_id}")
async def delete_session(session_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService) -> SessionDeleted:
    """Delete it with its runs, events, artifacts, directory and histories in Temporal. 409 while a turn runs."""
    sessions = Sessions(unit.connection, caller.workspace_id)
    _refuse_active(await sessions.get(session_id, lock=True))
    artifacts = await Artifacts(unit.connection, caller.workspace_id).ids(session_id)
    await sessions.delete(session_id)

    async def remove() -> None:
        service.tails.deleted(session_id)
        await asyncio.to_thread(service.files.remove_session, caller.workspace_id, session_id, artifacts)

    unit.deliveries.append(remove)
    return SessionDeleted(id=session_id)


@router.post("/{session_id}/messages", status_code=201, responses=QUEUE_FULL)
async def send_message(
    session_id: str, body: MessageCreate, caller: SessionsWrite, unit: UnitOfWork, service: TheService, response: Response
) -> MessageAccepted:
    """Send a message; answers at once with the run that will handle it. While a turn runs, `on_busy` decides which."""
    new = NewRun(message_of(body.content), on_busy=body.on_busy, client_event_id=body.client_event_id)
    event, row = await service.runs.submit(unit, session_id, new)
    response.headers["Location"] = f"/v1/runs/{row.id}"
    response.headers["Content-Location"] = f"/v1/runs/{row.id}/events/stream"
    return MessageAccepted(event=event.wire(), run=run_of(row, service.temporal_ui))


def _refuse_active(row: SessionRow) -> None:
    if row.active_run_id is not None:
        raise Conflict(f"Run {row.active_run_id} is still active: cancel it first.")
