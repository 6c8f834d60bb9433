"""Agents as data: instructions, model, tools and limits, kept as immutable integer versions."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from domain.agent_tools import AgentTool, McpToolset, names_of, spelled_out
from domain.mcp import McpServer
from domain.multiagent import Multiagent
from domain.strict import Strict


def _model_id(value: str) -> str:
    if not _MODEL.match(value):
        raise ValueError("a model is written provider:name, for example anthropic:claude-sonnet-5-5; see GET /v1/models")
    return value


_MODEL = re.compile(r"^[a-z0-9][a-z0-9_.-]*:\S{1,200}$")
ModelId = Annotated[str, AfterValidator(_model_id)]

MAX_METADATA = 16
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
]


class ModelConfig(BaseModel):
    """`id` is `provider:name`; other members go to the provider as options (`effort`, `temperature` …)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: ModelId

    @property
    def provider(self) -> str:
        return self.id.partition(":")[0]

    @property
    def name(self) -> str:
        return self.id.partition(":")[2]

    @property
    def options(self) -> dict[str, JsonValue]:
        return dict(self.model_extra or {})


class Limits(Strict):
    """What stops one run. None: no limit of that kind. `on_limit` says whether a limit ends the run or pauses it."""

    max_steps: int | None = Field(default=50, ge=1, le=10_000, strict=True)
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000, strict=True)
    max_cost_usd: float | None = Field(default=None, gt=0, le=1_000_000, allow_inf_nan=False, strict=True)
    max_seconds: int | None = Field(default=None, ge=1, le=31_536_000, strict=True)
    on_limit: Literal["end", "pause"] = "end"


OnTimeout = Literal["deny", "wait", "cancel_run"]


class ApprovalPolicy(Strict):
    """How long a tool call waits for a person's approval, and what happens then.

    Left out: a run in a session waits; one started by itself, which perhaps nobody watches, is denied after a day.
    """

    timeout_seconds: int = Field(default=86_400, ge=1, le=31_536_000, strict=True)
    on_timeout: OnTimeout = "deny"


class ContextPolicy(Strict):
    """How much of a conversation the agent's model is given before what is older is summarised."""

    max_tokens: int | None = Field(default=None, ge=500, le=100_000_000, strict=True)
    """As if the model had a window of so many; None: the model's own, where it is known."""
    compact_at: float = Field(default=0.8, ge=0.1, le=0.95, allow_inf_nan=False)
    """The part of the window that may be full."""


class AgentConfig(BaseModel):
    """What a version of an agent says. Shared by what callers send and what is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=256)
    description: str | None = Field(default=None, max_length=2048)
    model: ModelConfig
    system: str | None = Field(default=None, max_length=100_000)
    tools: tuple[AgentTool, ...] = Field(default=(), max_length=128)
    mcp_servers: tuple[McpServer, ...] = Field(default=(), max_length=20)
    limits: Limits = Limits()
    approvals: ApprovalPolicy | None = None
    context: ContextPolicy | None = None
    multiagent: Multiagent | None = None
    metadata: Metadata = {}

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """`model: "a:b"` stands for `{"id": "a:b"}`, and a tool's bare name for that tool alone."""
        if not isinstance(data, dict):
            return data
        out: dict[str, Any] = {**data}
        if isinstance(out.get("model"), str):
            out["model"] = {"id": out["model"]}
        if isinstance(out.get("tools"), list | tuple):
            out["tools"] = spelled_out(out["tools"])
        return out

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        names = [names_of(tool) for tool in self.tools]
        if len(set(names)) != len(names):
            raise ValueError("a tool is listed twice")
        return self

    @model_validator(mode="after")
    def _servers_and_toolsets(self) -> Self:
        """As the `anthropic` package documents it: every server has its toolset, and every toolset its server."""
        servers = [server.name for server in self.mcp_servers]
        toolsets = [tool.mcp_server_name for tool in self.tools if isinstance(tool, McpToolset)]
        if len(set(servers)) != len(servers):
            raise ValueError("two MCP servers have one name")
        if unknown := [name for name in toolsets if name not in servers]:
            raise ValueError(f"there is no MCP server {unknown[0]!r} in mcp_servers")
        if unused := [name for name in servers if name not in toolsets]:
            raise ValueError(f"no mcp_toolset in tools uses the MCP server {unused[0]!r}")
        return self


class AgentVersion(BaseModel, frozen=True):
    """One immutable version of a stored agent."""

    id: str
    version: int
    config: AgentConfig
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
