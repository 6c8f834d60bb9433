"""What the model sees: a pure function of the event log, whose older part never changes, so that prompt caches hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from domain.completions import AnswerBlock, Block, Document, Image, Message, Text, Thinking, ToolResult, ToolUse, tokens_of
from domain.events import (
    RUN_OVER_TYPES,
    AgentCustomToolUse,
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    ContextCompacted,
    Event,
    ModelRequestEnd,
    ModelRequestStart,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunTerminated,
    SystemMessage,
    ThreadMessageReceived,
    UserCustomToolResult,
    UserMessage,
)
from domain.mcp import tool_name
from domain.payload import DocumentContent, ImageContent, TextContent, UserContent
from domain.queue_events import QueueUpdated, SessionSteer
from domain.token_count import TokenCount

SYSTEM_NOTE = "<system>\n{}\n</system>"
"""Around a `system.message`. Every provider gets it among the user's blocks: few have a role for it in mid-conversation."""
INTERRUPTED_NOTE = "[Your answer was interrupted here. Go on from where it stopped.]"
SUMMARY_NOTE = "[The conversation so far, summarised: what was said is not shown any more.]\n{}"
LEFT_OUT_NOTE = "[A part of the conversation is left out here: it did not fit any more, and could not be summarised.]"
ASKED_NOTE = "[What follows is the newest message. You have answered it {} times so far, which is not shown any more.]"
"""Before a message that stays though its answers do not."""
SHORTENED_NOTE = "\n[… {:,} of {:,} characters left out: the whole did not fit …]\n"
STEERED = "steered"
"""A private member of a message that was steered into a running turn."""
LOST_RESULT = "The outcome of this call is unknown: it was interrupted before it reported."

READ_TYPES = (
    "user.message",
    "system.message",
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
    "span.model_request_end",
    "agent.thread_context_compacted",
    *sorted(RUN_OVER_TYPES),
)
"""The event types a transcript is made of; the others need not be read."""


def fold(events: Iterable[Event]) -> tuple[Message, ...]:
    """Return the conversation as alternating messages, the user's first and last.

    A user message enters at the first model call that its run starts after it was sent, not where it stands in the log:
    one that waits in the queue stands in the middle of another turn's tool calls. A system message enters with it, or behind
    all results where it came with one. Every tool use is followed by its result (vendors reject a request in which one is
    missing): a call that was cut off gets `LOST_RESULT`. What a compaction stands for is not there any more, but for the
    newest message.
    """
    transcript = Transcript()
    for event in events:
        transcript.take(event)
    return transcript.messages()


def plain(content: Iterable[UserContent]) -> str:
    """The text of a message's content blocks, in one piece; what is no text is named."""
    return "".join(_named(part) for part in content)


def shortened(text: str, chars: int) -> str:
    """Text of about so many characters: its beginning and its end."""
    if len(text) <= chars:
        return text
    head, tail = chars * 2 // 3, chars // 3
    return text[:head] + SHORTENED_NOTE.format(len(text) - head - tail, len(text)) + text[len(text) - tail :]


@dataclass(frozen=True)
class Said:
    """A message of the conversation, or a part of one that may go without the rest, and the seq of its first event."""

    message: Message
    since: int
    notes: int = 0
    """So many of its first blocks stand for what is left out."""


def _saying(message: Event, content: tuple[UserContent, ...]) -> Event:
    """A queued message as it was edited."""
    return message.model_copy(update={"payload": message.payload.model_copy(update={"content": content})})


class Transcript:
    """A fold that goes on: the log only grows, and between compactions what was said before stays as it was."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._role: Literal["user", "assistant"] = "user"
        self._saying: list[Block] = []
        """The blocks of the last message, to which more may come."""
        self._since = 0
        self._notes = 0
        self._seq = 0
        self._waiting: list[Event] = []
        self._deferred: dict[str, str | None] = {}
        """By message: the run that reads it, where it came too late for the one that it was sent to."""
        self._begun: set[str | None] = set()
        self._over: set[str | None] = set()
        self._open: dict[str, None] = {}
        self._interrupted = False
        self._summary: tuple[Text, ...] = ()
        self._asked: tuple[Block, ...] = ()
        """The newest message, which no compaction takes away; it came at `_asked_at`."""
        self._asked_at = 0
        self._answers = 0
        """Answers to it that a compaction took away."""
        self.tokens = TokenCount()
        self.has_attachments = False

    def take(self, event: Event) -> None:
        self._seq = event.seq
        match event.payload:
            case UserMessage() | SystemMessage() | ThreadMessageReceived(tool_use_id=None):
                self._waiting.append(event)
            case SessionSteer(event_id=message, status="deferred"):
                self._deferred[message] = event.run_id
            case QueueUpdated(event_id=message, content=content) if content is not None:
                self._waiting = [_saying(found, content) if found.id == message else found for found in self._waiting]
            case ModelRequestStart(purpose=None):
                self._begun.add(event.run_id)
                self._enter(event.run_id)
                self.tokens.asked()
            case ModelRequestEnd(purpose=None, is_error=False, model_usage=usage):
                self.tokens.answered(usage)
            case ContextCompacted():
                self._compact(event.payload)
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
        said = [said.message for said in self.said()]
        if self._interrupted:
            said.append(Message(role="user", content=(Text(text=INTERRUPTED_NOTE),)))
        return tuple(_joined(said))

    def said(self) -> tuple[Said, ...]:
        """Its pieces."""
        return (*self._said, *self._last())

    def cut(self, seq: int) -> int:
        """How many pieces go where those since that event are to stay: never a tool use from its result."""
        said = self.said()
        at = next((index for index, one in enumerate(said) if one.since >= seq), len(said))
        while at and (_has_results(said[at].message) if at < len(said) else self._open):
            at -= 1
        return at

    def kept(self, done: ContextCompacted) -> tuple[Said, ...]:
        """The conversation as a compaction leaves it."""
        said = self.said()
        at = self.cut(done.kept_from_seq)
        kept = [_without_notes(one) for one in said[at:]]
        kept = [one for one in kept if one.message.content]
        if done.result_chars is not None:
            kept = [_with_short_results(one, done.result_chars) for one in kept]
        notes: list[Block] = [*self._summary_after(done)] if at else [*self._summary]
        if self._asked and all(one.since > self._asked_at or not one.message.content for one in kept):
            notes += [Text(text=ASKED_NOTE.format(self._answers_before(at))), *self._asked]
        if not notes:
            return tuple(kept)
        if kept and kept[0].message.role == "user":
            first, *rest = kept
            whole = Message(role="user", content=(*notes, *first.message.content))
            return (Said(whole, first.since, len(notes)), *rest)
        return (Said(Message(role="user", content=tuple(notes)), 0, len(notes)), *kept)

    def _compact(self, done: ContextCompacted) -> None:
        at = self.cut(done.kept_from_seq)
        kept = self.kept(done)
        if at:
            self._answers = self._answers_before(at)
            self._summary = self._summary_after(done)
        self._said = list(kept)
        if kept:
            last = self._said.pop()
            self._role, self._saying = last.message.role, list(last.message.content)
            self._since, self._notes = last.since, last.notes
        self.tokens.restart(sum(tokens_of(block) for one in kept for block in one.message.content))

    def _summary_after(self, done: ContextCompacted) -> tuple[Text, ...]:
        if done.summary is not None:
            return (Text(text=SUMMARY_NOTE.format(done.summary)),)
        left_out = Text(text=LEFT_OUT_NOTE)
        return tuple(dict.fromkeys((*self._summary, left_out)))

    def _answers_before(self, at: int) -> int:
        """How many answers to the newest message are gone where so many pieces are."""
        gone = self.said()[:at]
        return self._answers + sum(one.message.role == "assistant" and one.since > self._asked_at for one in gone)

    def _enter(self, run_id: str | None) -> None:
        for tool_use_id in self._open:
            self._add("user", ToolResult(tool_use_id=tool_use_id, content=LOST_RESULT, is_error=True))
        self._open.clear()
        readers = {event.id: self._deferred.get(event.id, event.run_id) for event in self._waiting}
        entering = [event for event in self._waiting if readers[event.id] == run_id or readers[event.id] in self._over]
        self._waiting = [event for event in self._waiting if event not in entering]
        blocks: list[Block] = []
        asked = False
        for event in entering:
            if isinstance(event.payload, SystemMessage):
                blocks.append(Text(text=SYSTEM_NOTE.format(plain(event.payload.content))))
                continue
            assert isinstance(event.payload, UserMessage | ThreadMessageReceived)
            said = [block for block in _blocks(event.payload.content) if not isinstance(block, Text) or block.text]
            blocks += said
            asked = asked or bool(said)
            self._interrupted = False
        if asked and self._role == "user":  # what was said to a call that failed may go without what is said now
            self._said += self._last()
            self._saying, self._notes = [], 0
        for block in blocks:
            self._add("user", block)
            self.has_attachments = self.has_attachments or not isinstance(block, Text)
        if asked:  # what came with a tool result stays with that, and does not take the place of the question
            self._asked, self._asked_at, self._answers = tuple(blocks), self._seq, 0

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
            self._role, self._saying, self._notes = role, [], 0
        if not self._saying:
            self._since = self._seq
        self._saying.append(block)
        self.tokens.add(tokens_of(block), by_user=role == "user")

    def _last(self) -> tuple[Said, ...]:
        if not self._saying:
            return ()
        return (Said(Message(role=self._role, content=tuple(self._saying)), self._since, self._notes),)


def _joined(said: Iterable[Message]) -> Iterator[Message]:
    """Messages whose roles alternate."""
    for _, parts in groupby(said, lambda message: message.role):
        first, *more = parts
        yield Message(role=first.role, content=tuple(b for m in (first, *more) for b in m.content)) if more else first


def _blocks(content: Iterable[UserContent]) -> list[Block]:
    """Texts that follow one another become one, as they always have."""
    blocks: list[Block] = []
    for part in content:
        match part:
            case TextContent(text=text):
                before = blocks.pop() if blocks and isinstance(blocks[-1], Text) else Text(text="")
                assert isinstance(before, Text)
                blocks.append(Text(text=before.text + text))
            case ImageContent(source=source):
                blocks.append(Image(source=source))
            case DocumentContent(source=source, title=title, context=context):
                blocks.append(Document(source=source, title=title, context=context))
    return blocks


def _named(part: UserContent) -> str:
    match part:
        case TextContent(text=text):
            return text
        case ImageContent():
            return "[image]"
        case DocumentContent(title=title):
            return f"[document: {title}]" if title else "[document]"


def _has_results(message: Message) -> bool:
    return any(isinstance(block, ToolResult) for block in message.content)


def _without_notes(said: Said) -> Said:
    whole = said.message
    return Said(Message(role=whole.role, content=whole.content[said.notes :]), said.since) if said.notes else said


def _with_short_results(said: Said, chars: int) -> Said:
    blocks = tuple(
        block.model_copy(update={"content": shortened(block.content, chars)}) if isinstance(block, ToolResult) else block
        for block in said.message.content
    )
    return Said(Message(role=said.message.role, content=blocks), said.since, said.notes)
