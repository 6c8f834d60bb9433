"""Events: the immutable records of a session's log. Types only get added; members only get added, with defaults."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, PlainSerializer, TypeAdapter

from domain.batch_events import BatchEvent
from domain.clock import wire
from domain.model_events import ModelRequestEnd, ModelRequestStart
from domain.payload import Payload, TextContent, UserContent
from domain.queue_events import QueueEvent
from domain.runs import RunError, StopReason
from domain.session_events import SystemMessage, TitleSuggested
from domain.thread_events import (
    ContextCompacted,
    ThreadCreated,
    ThreadIdle,
    ThreadMessageReceived,
    ThreadMessageSent,
    ThreadRescheduled,
    ThreadRunning,
    ThreadTerminated,
)

Moment = Annotated[datetime, PlainSerializer(wire, return_type=str)]


class UserMessage(Payload):
    type: Literal["user.message"] = "user.message"
    content: tuple[UserContent, ...]
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
    evaluated_permission: Literal["allow", "ask", "deny"] | None = None


class AgentCustomToolUse(Payload):
    """A tool that the caller runs; the result comes as `user.custom_tool_result`."""

    type: Literal["agent.custom_tool_use"] = "agent.custom_tool_use"
    name: str
    input: dict[str, JsonValue]


class UserCustomToolResult(Payload):
    type: Literal["user.custom_tool_result"] = "user.custom_tool_result"
    custom_tool_use_id: str
    content: tuple[TextContent, ...] = ()
    is_error: bool | None = None


class UserToolConfirmation(Payload):
    type: Literal["user.tool_confirmation"] = "user.tool_confirmation"
    tool_use_id: str
    result: Literal["allow", "deny"]
    deny_message: str | None = None


class ApprovalRequested(Payload):
    type: Literal["approval.requested"] = "approval.requested"
    approval_id: str
    tool_use_id: str
    name: str
    input: dict[str, JsonValue]
    expires_at: Moment | None = None


class ApprovalResolved(Payload):
    type: Literal["approval.resolved"] = "approval.resolved"
    approval_id: str
    tool_use_id: str
    status: Literal["approved", "denied"]
    reason: str | None = None
    edited_input: dict[str, JsonValue] | None = None
    remembered: bool = False
    decided_by: str | None = None


class ApprovalExpired(Payload):
    type: Literal["approval.expired"] = "approval.expired"
    approval_id: str
    tool_use_id: str


class ApprovalCancelled(Payload):
    type: Literal["approval.cancelled"] = "approval.cancelled"
    approval_id: str
    tool_use_id: str


class RunWaiting(Payload):
    """The run waits for a time or for an external event. For people it waits by `agent.question` and `approval.requested`."""

    type: Literal["run.waiting"] = "run.waiting"
    tool_use_id: str
    waiting_for: Literal["time", "event"]
    until: Moment | None = None
    event_type: str | None = None


class ExternalEvent(Payload):
    """An external event that a tool use of this session waited for."""

    type: Literal["external_event.received"] = "external_event.received"
    tool_use_id: str
    external_event_id: str
    event_type: str
    data: dict[str, JsonValue]


class PlanItem(Payload):
    content: str
    status: Literal["pending", "in_progress", "completed"]


class AgentPlan(Payload):
    """The agent's whole todo list, as it is now."""

    type: Literal["agent.plan"] = "agent.plan"
    items: tuple[PlanItem, ...]


class AgentToolStarted(Payload):
    type: Literal["agent.tool_started"] = "agent.tool_started"
    tool_use_id: str


class AgentToolResult(Payload):
    type: Literal["agent.tool_result"] = "agent.tool_result"
    tool_use_id: str
    content: tuple[TextContent, ...]
    is_error: bool = False
    duration_ms: int | None = None


class AgentMcpToolUse(Payload):
    """`name` is the tool's own, not the one that the model calls it by (`domain.mcp.tool_name`)."""

    type: Literal["agent.mcp_tool_use"] = "agent.mcp_tool_use"
    mcp_server_name: str
    name: str
    input: dict[str, JsonValue]
    malformed: str | None = None
    evaluated_permission: Literal["allow", "ask", "deny"] | None = None


class AgentMcpToolResult(Payload):
    type: Literal["agent.mcp_tool_result"] = "agent.mcp_tool_result"
    mcp_tool_use_id: str
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
    choices: tuple[str, ...] | None = None
    """The answer is one of these."""
    answer_schema: dict[str, JsonValue] | None = None
    """The answer is JSON that fits this schema."""


class UserAnswer(Payload):
    """A person's answer to `agent.question`."""

    type: Literal["user.answer"] = "user.answer"
    tool_use_id: str
    content: tuple[TextContent, ...]
    """Text, or JSON as text where the question has a schema."""


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


class McpErrorDetail(Payload):
    """The tools of an MCP server are missing in this run, until it answers."""

    type: Literal["mcp_connection_failed_error", "mcp_authentication_failed_error"]
    mcp_server_name: str
    message: str
    retry_status: RetryStatus = RetryStatus(type="retrying")
    code: str = "mcp_unavailable"


class SessionError(Payload):
    type: Literal["session.error"] = "session.error"
    error: Annotated[ErrorDetail | McpErrorDetail, Field(discriminator="type")]


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


EventPayload = Annotated[
    UserMessage
    | SystemMessage
    | UserAnswer
    | AgentMessage
    | AgentThinking
    | UserToolConfirmation
    | UserCustomToolResult
    | AgentToolUse
    | AgentCustomToolUse
    | AgentToolStarted
    | AgentToolResult
    | AgentMcpToolUse
    | AgentMcpToolResult
    | AgentArtifact
    | AgentQuestion
    | AgentPlan
    | ApprovalRequested
    | ApprovalResolved
    | ApprovalExpired
    | ApprovalCancelled
    | RunWaiting
    | ExternalEvent
    | SessionRunning
    | SessionIdle
    | SessionRescheduled
    | ThreadCreated
    | ThreadMessageSent
    | ThreadMessageReceived
    | ThreadRunning
    | ThreadIdle
    | ThreadRescheduled
    | ThreadTerminated
    | QueueEvent
    | ContextCompacted
    | SessionUpdated
    | TitleSuggested
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
    | ModelRequestEnd
    | BatchEvent,
    Field(discriminator="type"),
]

payloads: TypeAdapter[EventPayload] = TypeAdapter(EventPayload)

RUN_OVER_TYPES = frozenset({"run.completed", "run.failed", "run.cancelled", "run.terminated"})


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
    thread_id: str | None = None
    """None: the session's primary thread."""
    for_run_id: str | None = None
    """The run that reads it, where the one that it was sent to ended first."""

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
            **({} if self.thread_id is None else {"session_thread_id": self.thread_id}),
            **self.payload.model_dump(mode="json", exclude={"type"}),
        }
