"""Events of threads: what sub-agents are given, answer and are at. Names as in the `anthropic` package."""

from typing import Literal

from domain.payload import Payload, TextContent
from domain.runs import RunError, StopReason


class ThreadCreated(Payload):
    """A sub-agent's thread. In the log of the thread that delegates; `session_thread_id` names the new one."""

    type: Literal["session.thread_created"] = "session.thread_created"
    session_thread_id: str
    agent_name: str
    title: str | None = None


class ThreadMessageSent(Payload):
    """A task for a sub-agent, in the log of the thread that delegates."""

    type: Literal["agent.thread_message_sent"] = "agent.thread_message_sent"
    to_session_thread_id: str
    to_agent_name: str | None = None
    content: tuple[TextContent, ...]


class ThreadMessageReceived(Payload):
    """A task or an answer, in the log of the thread that it is for."""

    type: Literal["agent.thread_message_received"] = "agent.thread_message_received"
    from_session_thread_id: str
    from_agent_name: str | None = None
    content: tuple[TextContent, ...]
    tool_use_id: str | None = None
    """Of an answer: the delegation, whose result the model reads. None: a task, which the model reads as it is."""


class ThreadRunning(Payload):
    """A thread's `session.status_running`."""

    type: Literal["session.thread_status_running"] = "session.thread_status_running"
    session_thread_id: str
    agent_name: str


class ThreadIdle(Payload):
    type: Literal["session.thread_status_idle"] = "session.thread_status_idle"
    session_thread_id: str
    agent_name: str
    stop_reason: StopReason


class ThreadRescheduled(Payload):
    type: Literal["session.thread_status_rescheduled"] = "session.thread_status_rescheduled"
    session_thread_id: str
    agent_name: str


class ThreadTerminated(Payload):
    """Its run failed or was stopped."""

    type: Literal["session.thread_status_terminated"] = "session.thread_status_terminated"
    session_thread_id: str
    agent_name: str


class ContextCompacted(Payload):
    """From here on the model sees less of the thread than its log holds."""

    type: Literal["agent.thread_context_compacted"] = "agent.thread_context_compacted"
    summary: str | None = None
    """What stands for the events before. None: there is no summary of what was added since the last one, see `error`."""
    kept_from_seq: int
    """What the model got to see from this event on it still sees as it is, and the newest message always."""
    result_chars: int | None = None
    """Tool results that are longer, of those that it still sees, are shortened for the model."""
    tokens_before: int
    """Estimated, of the next request."""
    tokens_after: int
    error: RunError | None = None
    """Why there is no summary."""
