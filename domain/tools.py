"""What a tool is: a name, a description, arguments, and what repeating it means. Where an agent's tools come from."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, JsonValue

from domain.agent_tools import Policy
from domain.agents import AgentConfig
from domain.completions import ToolSpec
from domain.events import AgentQuestion, EventPayload


class Effect(StrEnum):
    READ = "read"
    """Changes nothing: may be run again at will."""
    IDEMPOTENT = "idempotent"
    """Running it twice with the same `ToolContext.idempotency_key` is running it once."""
    ONCE = "once"
    """Never started twice: if a worker died while it ran, the model is told that the outcome is unknown."""


@dataclass(frozen=True)
class Quota:
    """How much a session's directory may hold."""

    bytes: int = 1 << 30
    entries: int = 100_000
    """Files, folders and links."""


@dataclass(frozen=True)
class ToolContext:
    """Where a tool call happens. `directory` is the session's own, shared by its runs; nothing outside it may be touched."""

    workspace_id: str
    session_id: str
    run_id: str
    tool_use_id: str
    directory: Path
    quota: Quota = Quota()

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this tool use."""
        return f"{self.run_id}/{self.tool_use_id}"


@dataclass(frozen=True)
class ToolAnswer:
    """The text that the model reads, and events that are appended just before it, in the same transaction."""

    text: str
    events: tuple[EventPayload, ...] = ()


class Tool(Protocol):
    """A function the model may call. Cancelling the call must stop what it started."""

    name: str
    description: str
    arguments: type[BaseModel]
    effect: Effect
    timeout_seconds: float
    asks: bool
    """Whether a person is asked first, where the agent does not say."""

    async def call(self, arguments: BaseModel, context: ToolContext) -> str | ToolAnswer:
        """Do it and return what the model reads. Raises ToolFailed with what the model should know."""
        ...


ToolCall = Callable[[Mapping[str, JsonValue], ToolContext], Awaitable[str | ToolAnswer]]
"""Takes the arguments as the model wrote them, a JSON object that nobody has looked at. Raises ToolFailed."""

WaitKind = Literal["input", "tool_result", "time", "event", "subagent"]
"""What the workflow waits for instead of calling the tool."""


@dataclass(frozen=True)
class Wait:
    """What a tool use waits for, as its arguments say it."""

    kind: WaitKind
    until: datetime | None = None
    """When the wait is over, whatever happens."""
    question: AgentQuestion | None = None
    """Of `input`; its `tool_use_id` is filled in by whoever writes it."""
    event_type: str | None = None
    """Of `event`: what an external event must be called …"""
    event_match: Mapping[str, JsonValue] | None = None
    """… and the members that it must have."""
    at_once: int | None = None
    """Of `subagent`: how many of the run's are at work at once."""


@dataclass(frozen=True)
class OfferedTool:
    """A tool as one agent offers it to its model."""

    spec: ToolSpec
    effect: Effect
    timeout_seconds: float
    policy: Policy
    call: ToolCall
    plan_wait: Callable[[Mapping[str, JsonValue]], Wait] | None = None
    """Of a tool that the workflow carries out, by waiting: reads the arguments. Raises ToolFailed; `call` then says why."""
    kind: Literal["tool", "custom", "mcp"] = "tool"
    """Which type of event its use is written as."""
    origin: tuple[str, str] | None = None
    """Of an MCP tool: the server's name and the tool's own."""

    @property
    def name(self) -> str:
        return self.spec.name


class ToolSource(Protocol):
    """Where tools come from: the registry, an agent's own definitions, MCP servers …"""

    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        """What it has for that agent; nothing that the agent has switched off. Never raises, and is fast."""
        ...
