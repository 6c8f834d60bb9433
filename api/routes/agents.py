"""/v1/agents"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.auth import AgentsRead, AgentsWrite
from api.errors import PROBLEMS
from api.pages import CreatedAt, Cursor, Limit, List, Order, listed, seq_cursor, seq_of
from api.services.rosters import pinned
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Agent
from domain.agents import AgentConfig, AgentTool, ApprovalPolicy, ContextPolicy, Limits, ModelConfig
from domain.mcp import McpServer
from domain.multiagent import Multiagent
from storage.agents import Agents

router = APIRouter(prefix="/v1/agents", tags=["agents"], route_class=TransactionalRoute, responses=PROBLEMS)

MAX_VERSION = 2_000_000_000
Version = Annotated[int, Field(ge=1, le=MAX_VERSION, strict=True)]


class AgentCreate(AgentConfig):
    """`model` is `provider:name` or an object with that `id`; a tool is its name or a toolset."""

    skills: tuple[()] = ()

    def config(self) -> AgentConfig:
        return AgentConfig.model_validate(self.model_dump(exclude={"skills"}))


class AgentUpdate(BaseModel):
    """Members left out stay; null clears all but `name`, `model` and `limits`, and removes a metadata value."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    description: str | None = None
    model: str | ModelConfig | None = None
    system: str | None = None
    tools: tuple[str | AgentTool, ...] | None = None
    limits: Limits | None = None
    approvals: ApprovalPolicy | None = None
    context: ContextPolicy | None = None
    metadata: dict[str, str | None] | None = None
    mcp_servers: Annotated[tuple[McpServer, ...], Field(max_length=20)] | None = None
    skills: tuple[()] | None = None
    multiagent: Multiagent | None = None


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Version


@router.post("", status_code=201)
async def create_agent(
    body: AgentCreate, caller: AgentsWrite, unit: UnitOfWork, service: TheService, response: Response
) -> Agent:
    """Store an agent, as version 1."""
    config = body.config()
    await service.catalog.check(config)
    agents = Agents(unit.connection, caller.workspace_id)
    agent = await agents.create(await pinned(agents, config))
    response.headers["Location"] = f"/v1/agents/{agent.id}"
    return Agent.of(agent)


@router.get("")
async def list_agents(
    caller: AgentsRead,
    unit: UnitOfWork,
    created: CreatedAt,
    limit: Limit = 20,
    page: Cursor = None,
    order: Order = "desc",
    include_archived: bool = False,
    name: str | None = None,
) -> List[Agent]:
    """Stored agents, the newest first; `name` finds those of exactly that name."""
    agents = Agents(unit.connection, caller.workspace_id)
    found = await agents.find(
        limit=limit,
        cursor=page,
        descending=order == "desc",
        include_archived=include_archived,
        name=name,
        created_after=created.after,
        created_before=created.before,
    )
    pins = [(row.id, row.version) for row in found.rows]
    versions = await agents.many(pins)
    return listed([Agent.of(versions[pin]) for pin in pins], found.next_page)


@router.get("/{agent_id}")
async def get_agent(
    agent_id: str, caller: AgentsRead, unit: UnitOfWork, version: Annotated[int | None, Query(ge=1, le=MAX_VERSION)] = None
) -> Agent:
    """The newest version, or the one that is named."""
    return Agent.of(await Agents(unit.connection, caller.workspace_id).get(agent_id, version))


@router.post("/{agent_id}")
async def update_agent(agent_id: str, body: AgentUpdate, caller: AgentsWrite, unit: UnitOfWork, service: TheService) -> Agent:
    """Write the next version. With `version`, only if that is still the newest: else 409 `version_conflict`."""
    agents = Agents(unit.connection, caller.workspace_id)
    newest = await agents.get(agent_id, lock=True)
    config = _merged(newest.config, body)
    await service.catalog.check(config)
    if body.multiagent is not None:
        config = await pinned(agents, config, newest)
    return Agent.of(await agents.update(agent_id, body.version or newest.version, config))


@router.post("/{agent_id}/archive")
async def archive_agent(agent_id: str, caller: AgentsWrite, unit: UnitOfWork) -> Agent:
    """Start nothing new with it; what runs goes on. For good."""
    return Agent.of(await Agents(unit.connection, caller.workspace_id).archive(agent_id))


@router.get("/{agent_id}/versions")
async def list_versions(
    agent_id: str, caller: AgentsRead, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None
) -> List[Agent]:
    """Every version, the newest first."""
    before = None if page is None else seq_of(page)
    versions = await Agents(unit.connection, caller.workspace_id).versions(agent_id, before=before, limit=limit + 1)
    following = seq_cursor(versions[limit - 1].version) if len(versions) > limit else None
    return listed([Agent.of(version) for version in versions[:limit]], following)


@router.get("/{agent_id}/versions/{version}")
async def get_version(
    agent_id: str, version: Annotated[int, Path(ge=1, le=MAX_VERSION)], caller: AgentsRead, unit: UnitOfWork
) -> Agent:
    return Agent.of(await Agents(unit.connection, caller.workspace_id).get(agent_id, version))


@router.post("/{agent_id}/rollback")
async def roll_back(agent_id: str, body: Rollback, caller: AgentsWrite, unit: UnitOfWork) -> Agent:
    """Write a new version that says what an old one said."""
    agents = Agents(unit.connection, caller.workspace_id)
    newest, old = await agents.get(agent_id, lock=True), await agents.get(agent_id, body.version)
    return Agent.of(await agents.update(agent_id, newest.version, old.config))


def _merged(config: AgentConfig, body: AgentUpdate) -> AgentConfig:
    given = body.model_dump(exclude_unset=True, include=_REPLACED)
    changes = {name: _CLEARED.get(name) if value is None else value for name, value in given.items()}
    merged = {**config.model_dump(), **{k: v for k, v in changes.items() if v is not None or k in _CLEARED}}
    if body.metadata is not None:
        both = {**config.metadata, **body.metadata}
        merged["metadata"] = {key: value for key, value in both.items() if value is not None}
    try:
        return AgentConfig.model_validate(merged)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults, body=merged) from error


_REPLACED = {"name", "description", "model", "system", "tools", "mcp_servers", "limits", "approvals", "context", "multiagent"}
_CLEARED: dict[str, Any] = {
    **dict.fromkeys(("description", "system", "approvals", "context", "multiagent")),
    **dict.fromkeys(("tools", "mcp_servers"), ()),
}
