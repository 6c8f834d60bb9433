"""Events: the immutable records of a session's log. Types only get added; members only get added, with defaults."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from domain.clock import wire
from domain.runs import RunError, StopReason
from domain.usage import Cost, Usage


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TextContent(Payload):
    type: Literal["text"] = "text"
    text: str


class UserMessage(Payload):
    type: Literal["user.message"] = "user.message"
    content: tuple[TextContent, ...]
    client_event_id: str | None = None


class AgentMessage(Payload):
    type: Literal["agent.message"] = "agent.message"
    content: tuple[TextContent, ...]
    interrupted: bool = False
    """True when the model call was stopped in mid-sentence and this is what it had written."""


class AgentThinking(Payload):
    type: Literal["agent.thinking"] = "agent.thinking"
    text: str
    interrupted: bool = False


class AgentToolUse(Payload):
    type: Literal["agent.tool_use"] = "agent.tool_use"
    name: str
    input: dict[str, JsonValue]
    malformed: str | None = None


class AgentToolStarted(Payload):
    type: Literal["agent.tool_started"] = "agent.tool_started"
    tool_use_id: str


class AgentToolResult(Payload):
    type: Literal["agent.tool_result"] = "agent.tool_result"
    tool_use_id: str
    content: tuple[TextContent, ...]
    is_error: bool = False
    duration_ms: int | None = None


class AgentArtifact(Payload):
    """A file that the agent published: a copy that nothing changes any more, at `/v1/artifacts/{artifact_id}/content`."""

    type: Literal["agent.artifact"] = "agent.artifact"
    artifact_id: str
    tool_use_id: str
    name: str
    description: str | None = None
    media_type: str
    size_bytes: int
    sha256: str
    path: str
    """Where it was in the session's directory."""


class AgentQuestion(Payload):
    type: Literal["agent.question"] = "agent.question"
    tool_use_id: str
    question: str


class UserAnswer(Payload):
    """A person's answer to `agent.question`, given by `POST /v1/runs/{id}/input` while the run waits."""

    type: Literal["user.answer"] = "user.answer"
    tool_use_id: str
    content: tuple[TextContent, ...]


class SessionRunning(Payload):
    type: Literal["session.status_running"] = "session.status_running"


class SessionIdle(Payload):
    type: Literal["session.status_idle"] = "session.status_idle"
    stop_reason: StopReason


class SessionRescheduled(Payload):
    """A model call failed in passing and will be tried again."""

    type: Literal["session.status_rescheduled"] = "session.status_rescheduled"


class SessionUpdated(Payload):
    type: Literal["session.updated"] = "session.updated"
    title: str | None = None
    metadata: dict[str, str] | None = None


class RetryStatus(Payload):
    type: Literal["retrying", "exhausted", "terminal"]


class ErrorDetail(Payload):
    type: Literal["model_overloaded_error", "model_rate_limited_error", "model_request_failed_error", "unknown_error"]
    message: str
    retry_status: RetryStatus
    code: str


class SessionError(Payload):
    type: Literal["session.error"] = "session.error"
    error: ErrorDetail


class RunQueued(Payload):
    type: Literal["run.queued"] = "run.queued"
    attempt: int = 1
    """2 for the first retry of a failed run …"""


class RunStarted(Payload):
    type: Literal["run.started"] = "run.started"


class RunPaused(Payload):
    type: Literal["run.paused"] = "run.paused"
    reason: str | None = None
    stop_reason: StopReason | None = None
    """Set when a limit paused the run."""


class RunResumed(Payload):
    type: Literal["run.resumed"] = "run.resumed"


class RunCompleted(Payload):
    type: Literal["run.completed"] = "run.completed"
    stop_reason: StopReason


class RunFailed(Payload):
    type: Literal["run.failed"] = "run.failed"
    stop_reason: StopReason
    error: RunError


class RunCancelled(Payload):
    type: Literal["run.cancelled"] = "run.cancelled"
    reason: str | None = None


class RunTerminated(Payload):
    type: Literal["run.terminated"] = "run.terminated"
    reason: str | None = None


class ModelRequestStart(Payload):
    type: Literal["span.model_request_start"] = "span.model_request_start"
    model: str
    attempt: int


class ModelRequestEnd(Payload):
    type: Literal["span.model_request_end"] = "span.model_request_end"
    model_request_start_id: str
    is_error: bool = False
    model_usage: Usage
    cost: Cost | None = None
    duration_ms: int
    time_to_first_token_ms: int | None = None
    attempt: int
    error: RunError | None = None


EventPayload = Annotated[
    UserMessage
    | UserAnswer
    | AgentMessage
    | AgentThinking
    | AgentToolUse
    | AgentToolStarted
    | AgentToolResult
    | AgentArtifact
    | AgentQuestion
    | SessionRunning
    | SessionIdle
    | SessionRescheduled
    | SessionUpdated
    | SessionError
    | RunQueued
    | RunStarted
    | RunPaused
    | RunResumed
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunTerminated
    | ModelRequestStart
    | ModelRequestEnd,
    Field(discriminator="type"),
]

payloads: TypeAdapter[EventPayload] = TypeAdapter(EventPayload)

RUN_OVER_TYPES = frozenset({"run.completed", "run.failed", "run.cancelled", "run.terminated"})

SDK_TYPES = frozenset(
    {
        "user.message",
        "user.interrupt",
        "user.tool_confirmation",
        "user.custom_tool_result",
        "agent.message",
        "agent.thinking",
        "agent.tool_use",
        "agent.tool_result",
        "agent.mcp_tool_use",
        "agent.mcp_tool_result",
        "agent.custom_tool_use",
        "session.error",
        "session.status_running",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_terminated",
        "session.updated",
        "session.deleted",
        "span.model_request_start",
        "span.model_request_end",
        "event_start",
        "event_delta",
    }
)
"""What the `anthropic` package decodes (types/beta/sessions/beta_managed_agents_stream_session_events.py): it turns a
type it does not know into a wrong class, so callers that send `anthropic-beta` get these only."""


class Event(BaseModel, frozen=True):
    """A stored event: the envelope and its payload. On the wire the payload's members stand at the top level."""

    id: str
    seq: int
    session_id: str
    run_id: str | None
    created_at: datetime
    processed_at: datetime | None
    """When the agent took it up; None while a message is still queued."""
    payload: EventPayload
    private: dict[str, JsonValue] | None = None
    """Kept for the model's next call, never sent: a provider's signatures over its reasoning."""

    @property
    def type(self) -> str:
        return self.payload.type

    def wire(self) -> dict[str, Any]:
        """The JSON object that callers and viewers get."""
        return {
            "id": self.id,
            "seq": self.seq,
            "type": self.payload.type,
            "session_id": self.session_id,
            "run_id": self.run_id,
            "created_at": wire(self.created_at),
            "processed_at": wire(self.processed_at) if self.processed_at else None,
            **self.payload.model_dump(mode="json", exclude={"type"}),
        }
