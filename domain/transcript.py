"""What the model sees: a pure function of the event log, whose older part never changes, so that prompt caches hold."""

from collections.abc import Iterable
from typing import Literal

from domain.completions import AnswerBlock, Block, Message, Text, Thinking, ToolResult, ToolUse
from domain.events import (
    RUN_OVER_TYPES,
    AgentCustomToolUse,
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    Event,
    ModelRequestStart,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunTerminated,
    TextContent,
    ThreadMessageReceived,
    UserCustomToolResult,
    UserMessage,
)
from domain.mcp import tool_name
from domain.queue_events import QueueUpdated, SessionSteer

INTERRUPTED_NOTE = "[Your answer was interrupted here. Go on from where it stopped.]"
STEERED = "steered"
"""A private member of a message that was steered into a running turn."""
LOST_RESULT = "The outcome of this call is unknown: it was interrupted before it reported."

READ_TYPES = (
    "user.message",
    "agent.thread_message_received",
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.tool_result",
    "agent.mcp_tool_use",
    "agent.mcp_tool_result",
    "agent.custom_tool_use",
    "user.custom_tool_result",
    "span.model_request_start",
    "session.steer",
    "session.queue_updated",
    *sorted(RUN_OVER_TYPES),
)
"""The event types a transcript is made of; the others need not be read."""


def fold(events: Iterable[Event]) -> tuple[Message, ...]:
    """Return the conversation as alternating messages, the user's first and last.

    A user message enters at the first model call that its run starts after it was sent, not where it stands in the log:
    one that waits in the queue stands in the middle of another turn's tool calls. Every tool use is followed by its result
    (vendors reject a request in which one is missing): a call that was cut off gets `LOST_RESULT`.
    """
    transcript = Transcript()
    for event in events:
        transcript.take(event)
    return transcript.messages()


def plain(content: Iterable[TextContent]) -> str:
    """The text of a message's content blocks, in one piece."""
    return "".join(part.text for part in content)


def _saying(message: Event, content: tuple[TextContent, ...]) -> Event:
    """A queued message as it was edited."""
    return message.model_copy(update={"payload": message.payload.model_copy(update={"content": content})})


class Transcript:
    """A fold that goes on: the log only grows, and what was said before stays as it was."""

    def __init__(self) -> None:
        self._said: list[Message] = []
        self._role: Literal["user", "assistant"] = "user"
        self._saying: list[Block] = []
        """The blocks of the last message, to which more may come."""
        self._waiting: list[Event] = []
        self._deferred: dict[str, str | None] = {}
        """By message: the run that reads it, where it came too late for the one that it was sent to."""
        self._begun: set[str | None] = set()
        self._over: set[str | None] = set()
        self._open: dict[str, None] = {}
        self._interrupted = False

    def take(self, event: Event) -> None:
        match event.payload:
            case UserMessage() | ThreadMessageReceived(tool_use_id=None):
                self._waiting.append(event)
            case SessionSteer(event_id=message, status="deferred"):
                self._deferred[message] = event.run_id
            case QueueUpdated(event_id=message, content=content) if content is not None:
                self._waiting = [_saying(found, content) if found.id == message else found for found in self._waiting]
            case ModelRequestStart():
                self._begun.add(event.run_id)
                self._enter(event.run_id)
            case RunCompleted() | RunFailed() | RunCancelled() | RunTerminated():
                # Input that came too late for its run is read by the next; a turn withdrawn from the queue is not.
                if event.run_id in self._begun:
                    self._over.add(event.run_id)
            case AgentMessage(content=content, interrupted=interrupted):
                self._answer(Text(text=plain(content)))
                self._interrupted = interrupted
            case AgentThinking(text=text, interrupted=False) if event.private:
                # Reasoning goes back only to the vendor that signed it; unsigned text would be refused or misread.
                signature, redacted = event.private.get("signature"), event.private.get("redacted")
                self._answer(
                    Thinking(
                        text=text,
                        signature=signature if isinstance(signature, str) else None,
                        redacted=redacted if isinstance(redacted, str) else None,
                    )
                )
            case AgentToolUse(name=name, input=arguments) | AgentCustomToolUse(name=name, input=arguments):
                self._answer(ToolUse(id=event.id, name=name, input=arguments))
                self._open[event.id] = None
            case AgentMcpToolUse(mcp_server_name=server, name=name, input=arguments):
                self._answer(ToolUse(id=event.id, name=tool_name(server, name), input=arguments))
                self._open[event.id] = None
            case AgentToolResult(tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, is_error)
            case AgentMcpToolResult(mcp_tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, is_error)
            case UserCustomToolResult(custom_tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, is_error or False)
            case _:
                pass

    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        if not self._interrupted:
            return (*self._said, *self._last())
        note = Text(text=INTERRUPTED_NOTE)
        if self._role == "user":
            return (*self._said, Message(role="user", content=(*self._saying, note)))
        return (*self._said, *self._last(), Message(role="user", content=(note,)))

    def _enter(self, run_id: str | None) -> None:
        for tool_use_id in self._open:
            self._add("user", ToolResult(tool_use_id=tool_use_id, content=LOST_RESULT, is_error=True))
        self._open.clear()
        readers = {event.id: self._deferred.get(event.id, event.run_id) for event in self._waiting}
        entering = [event for event in self._waiting if readers[event.id] == run_id or readers[event.id] in self._over]
        self._waiting = [event for event in self._waiting if event not in entering]
        for event in entering:
            assert isinstance(event.payload, UserMessage | ThreadMessageReceived)
            self._add("user", Text(text=plain(event.payload.content)))
            self._interrupted = False

    def _result(self, tool_use_id: str, content: Iterable[TextContent], is_error: bool) -> None:
        if tool_use_id in self._open:
            del self._open[tool_use_id]
            self._add("user", ToolResult(tool_use_id=tool_use_id, content=plain(content), is_error=is_error))

    def _answer(self, block: AnswerBlock) -> None:
        if self._interrupted:
            self._add("user", Text(text=INTERRUPTED_NOTE))
            self._interrupted = False
        self._add("assistant", block)

    def _add(self, role: Literal["user", "assistant"], block: Block) -> None:
        if isinstance(block, Text) and not block.text:
            return
        if role != self._role:
            self._said += self._last()
            self._role, self._saying = role, []
        self._saying.append(block)

    def _last(self) -> tuple[Message, ...]:
        return (Message(role=self._role, content=tuple(self._saying)),) if self._saying else ()
