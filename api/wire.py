"""Agents, sessions and runs as callers see them, and from rows to them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, PlainSerializer

from domain.agent_tools import ASKING, AnyTool, McpToolset, Policy, Toolset
from domain.agents import AgentVersion, ApprovalPolicy, ContextPolicy, Limits
from domain.clock import wire
from domain.files import MountedFile
from domain.multiagent import Multiagent, RosterSelf
from domain.runs import AgentRef, Run, RunError, RunLinks, RunStatus, StopReason
from domain.sessions import OnBusy
from domain.usage import Cost, Usage, cost_of
from storage.tables import ApiKeyRow, ArtifactRow, FileRow, RunRow, SessionRow, UsageColumns

Time = Annotated[datetime, PlainSerializer(wire, return_type=str)]

SERVICE_ACCOUNT = {"type": "service_account"}


class Agent(BaseModel):
    """Field names and defaults as in the `anthropic` package's BetaManagedAgentsAgent."""

    type: Literal["agent"] = "agent"
    id: str
    name: str
    description: str | None
    model: dict[str, Any]
    system: str | None
    tools: list[dict[str, Any]]
    mcp_servers: list[dict[str, Any]]
    skills: list[dict[str, Any]] = []
    multiagent: dict[str, Any] | None = None
    execution_identity: dict[str, str] = SERVICE_ACCOUNT
    limits: Limits
    approvals: ApprovalPolicy | None
    context: ContextPolicy | None
    metadata: dict[str, str]
    version: int
    created_at: Time
    updated_at: Time
    archived_at: Time | None

    @classmethod
    def of(cls, agent: AgentVersion) -> "Agent":
        config = agent.config
        return cls(
            id=agent.id,
            name=config.name,
            description=config.description,
            model=config.model.model_dump(mode="json"),
            system=config.system,
            tools=[_tool(tool) for tool in config.tools],
            mcp_servers=[server.model_dump(mode="json") for server in config.mcp_servers],
            limits=config.limits,
            approvals=config.approvals,
            context=config.context,
            multiagent=None if config.multiagent is None else _roster(config.multiagent, agent),
            metadata=config.metadata,
            version=agent.version,
            created_at=agent.created_at,
            updated_at=agent.updated_at,
            archived_at=agent.archived_at,
        )

    def to_viewers(self) -> "Agent":
        """What those see of it who see the conversation only: not how it was instructed, nor with what it is connected."""
        empty: dict[str, Any] = {"tools": [], "mcp_servers": [], "metadata": {}}
        return self.model_copy(update={"system": None, "multiagent": None, "approvals": None, **empty})


def _roster(multiagent: Multiagent, agent: AgentVersion) -> dict[str, Any]:
    """Every entry as an agent at a version, which is what the SDK knows."""
    entries = [
        {"type": "agent", "id": agent.id, "version": agent.version}
        if isinstance(entry, RosterSelf)
        else {"type": "agent", "id": entry.id, "version": entry.version, "name": entry.name}
        for entry in multiagent.agents
    ]
    return {**multiagent.model_dump(mode="json", exclude={"agents"}), "agents": entries}


def _tool(tool: AnyTool) -> dict[str, Any]:
    match tool:
        case Toolset():
            return _toolset(tool)
        case McpToolset():
            return _mcp_toolset(tool)
        case _:
            return tool.model_dump(mode="json")


def _mcp_toolset(toolset: McpToolset) -> dict[str, Any]:
    def config(name: str) -> dict[str, Any]:
        return {"enabled": toolset.enabled(name), "permission_policy": {"type": toolset.policy(name)}}

    return {
        "type": toolset.type,
        "mcp_server_name": toolset.mcp_server_name,
        "default_config": config(""),
        "configs": [{"name": said.name, **config(said.name)} for said in toolset.configs],
    }


def _toolset(toolset: Toolset) -> dict[str, Any]:
    """With the policies that hold where none was said: the SDK needs them, and what is sent back must mean the same."""
    default = toolset.default_config.permission_policy

    def config(name: str) -> dict[str, Any]:
        policy = toolset.policy(name) or ("always_ask" if name in ASKING else "always_allow")
        network = {"network": True} if name == "bash" and toolset.network else {}
        enabled = toolset.config(name).enabled
        return {"type": name, "name": name, "enabled": enabled, "permission_policy": {"type": policy}, **network}

    named = [config.name for config in toolset.configs]
    unnamed = [name for name in ASKING if name not in named and default is None]
    standard = {"type": "always_allow"} if default is None else default.model_dump()
    return {
        "type": toolset.type,
        "default_config": {"enabled": toolset.default_config.enabled, "permission_policy": standard},
        "configs": [config(name) for name in (*named, *unnamed)],
    }


class SessionUsage(Usage, frozen=True):
    active_seconds: float


class Stats(BaseModel):
    active_seconds: float
    duration_seconds: float


class LastMessage(BaseModel):
    role: str
    text: str
    created_at: str


class SnippetPart(BaseModel):
    text: str
    match: bool


class SearchMatch(BaseModel):
    """The text by which a search has found a session."""

    field: Literal["title", "message"]
    event_id: str | None
    """Of the message."""
    score: float
    snippet: list[SnippetPart]
    """Plain text in pieces; the pieces that match are to be marked."""


class ForkedFrom(BaseModel):
    session_id: str
    event_id: str | None
    """The last event of that session up to which its log was copied; None: nothing was."""
    before_event_id: str | None
    """The event before which it was forked, such as the message that was edited; None: it was forked after one."""


class Session(BaseModel):
    """The `anthropic` package's BetaManagedAgentsSession, and what Perdure adds."""

    type: Literal["session"] = "session"
    id: str
    agent: Agent
    status: Literal["idle", "running", "rescheduling", "terminated"]
    title: str | None
    environment_id: str
    metadata: dict[str, str]
    tags: list[str] = []
    usage: SessionUsage
    stats: Stats
    resources: list["Resource"]
    outcome_evaluations: list[dict[str, Any]] = []
    vault_ids: list[str] = []
    budget: dict[str, Any] | None = None
    deployment_id: str | None = None
    on_busy: OnBusy
    queue_depth: int
    permissions: dict[str, Policy]
    """Policies by a tool's name that hold in this session instead of the agent's."""
    paused: bool
    active_run_id: str | None
    queue_length: int
    message_count: int
    last_message: LastMessage | None
    match: SearchMatch | None = None
    """Only in the list with `search`."""
    cost: Cost | None
    forked_from: ForkedFrom | None = None
    created_at: Time
    updated_at: Time
    archived_at: Time | None

    @classmethod
    def of(cls, row: SessionRow, agent: AgentVersion, queue_length: int) -> "Session":
        usage = usage_of(row)
        return cls.model_validate(
            {
                "id": row.id,
                "agent": Agent.of(agent),
                "status": row.status,
                "title": row.title,
                "environment_id": row.environment_id,
                "metadata": row.meta,
                "tags": row.tags,
                "usage": {**usage.model_dump(), "active_seconds": row.active_seconds},
                "stats": {
                    "active_seconds": row.active_seconds,
                    "duration_seconds": (row.updated_at - row.created_at).total_seconds(),
                },
                "resources": [Resource.of(MountedFile.model_validate(found)) for found in row.resources or ()],
                "on_busy": row.on_busy,
                "queue_depth": row.queue_depth,
                "paused": row.paused,
                "permissions": row.permissions,
                "active_run_id": row.active_run_id,
                "queue_length": queue_length,
                "message_count": row.message_count,
                "last_message": row.last_message,
                "cost": cost_of(row.cost_nano_usd),
                "forked_from": forked_from(row),
                "created_at": row.created_at,
                "updated_at": row.updated_at,
                "archived_at": row.archived_at,
            }
        )


def forked_from(row: SessionRow) -> ForkedFrom | None:
    if row.forked_from_id is None:
        return None
    return ForkedFrom(
        session_id=row.forked_from_id, event_id=row.forked_from_event_id, before_event_id=row.forked_before_event_id
    )


class Key(BaseModel):
    type: Literal["api_key"] = "api_key"
    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: Time
    revoked_at: Time | None
    key: str | None = None
    """Only in the answer that creates it."""

    @classmethod
    def of(cls, row: ApiKeyRow, key: str | None = None) -> "Key":
        return cls(
            id=row.id,
            name=row.name,
            prefix=row.prefix,
            scopes=row.scopes,
            created_at=row.created_at,
            revoked_at=row.revoked_at,
            key=key,
        )


class File(BaseModel):
    """The `anthropic` package's BetaFileMetadata, and what Perdure adds."""

    type: Literal["file"] = "file"
    id: str
    filename: str
    mime_type: str
    size_bytes: int
    sha256: str
    downloadable: bool = True
    created_at: Time

    @classmethod
    def of(cls, row: FileRow) -> "File":
        return cls(mime_type=row.media_type, **row.model_dump(exclude={"workspace_id", "media_type"}))


class Artifact(BaseModel):
    type: Literal["artifact"] = "artifact"
    id: str
    session_id: str
    run_id: str
    name: str
    description: str | None
    media_type: str
    size_bytes: int
    sha256: str
    path: str
    """Where it was in the session's directory."""
    created_at: Time

    @classmethod
    def of(cls, row: ArtifactRow) -> "Artifact":
        return cls(**row.model_dump())


class Resource(BaseModel):
    """A file that was given to a session: the `anthropic` package's BetaManagedAgentsFileResource."""

    type: Literal["file"] = "file"
    id: str
    file_id: str
    mount_path: str
    """As commands see it; the file tools take it relative to `/workspace`."""
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, file: MountedFile) -> "Resource":
        at = file.created_at
        return cls(id=file.id, file_id=file.file_id, mount_path=f"/workspace/{file.path}", created_at=at, updated_at=at)


def run_of(row: RunRow, temporal_ui: str | None) -> Run:
    """`temporal_ui`: the address under which Temporal's Web UI shows workflows, if it is known."""
    return Run.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "session_id": row.session_id,
            "agent": AgentRef(id=row.agent_id, version=row.agent_version, name=row.agent_name),
            "status": RunStatus(row.status),
            "waiting_for": row.waiting_for,
            "stop_reason": StopReason.model_validate({"type": row.stop_type}) if row.stop_type else None,
            "output": row.output,
            "plan": row.plan,
            "error": RunError.model_validate(row.error) if row.error else None,
            "usage": usage_of(row),
            "cost": cost_of(row.cost_nano_usd),
            "step_count": row.step_count,
            "limits": Limits.model_validate(row.limits),
            "attempt": row.attempt,
            "parent_run_id": row.parent_run_id,
            "copied_from": row.copied_from,
            "batch_id": row.batch_id,
            "metadata": row.meta,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "queue_seconds": (row.started_at - row.created_at).total_seconds() if row.started_at else None,
            "pause_requested_at": row.pause_requested_at,
            "paused_at": row.paused_at,
            "cancel_requested_at": row.cancel_requested_at,
            "workflow_id": row.id,
            "links": RunLinks(
                temporal=f"{temporal_ui}/workflows/{row.id}" if temporal_ui else None,
                stream=f"/v1/runs/{row.id}/events/stream",
            ),
        }
    )


def usage_of(row: UsageColumns) -> Usage:
    return Usage(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cache_read_input_tokens=row.cache_read_input_tokens,
        cache_creation_input_tokens=row.cache_creation_input_tokens,
        estimated=row.usage_estimated,
    )
