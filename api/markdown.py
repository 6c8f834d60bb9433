"""A session's log as Markdown for people to read: written as the events come, in the order in which the agent took them up.

What people, models and tools said is shown in quotations and code blocks that it cannot break out of.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import JsonValue

from domain.clock import wire
from domain.events import (
    AgentArtifact,
    AgentCustomToolUse,
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentPlan,
    AgentQuestion,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    ApprovalCancelled,
    ApprovalExpired,
    ApprovalResolved,
    Event,
    ExternalEvent,
    ModelRequestStart,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunQueued,
    RunTerminated,
    SessionError,
    SystemMessage,
    TextContent,
    ThreadCreated,
    ThreadMessageReceived,
    UserAnswer,
    UserCustomToolResult,
    UserMessage,
)
from domain.queue_events import SessionSteer
from domain.transcript import plain

_FROM = {"user.message": "User", "system.message": "System", "agent.thread_message_received": "Task"}
_TICKS = re.compile(r"`+")
_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&])")


def code(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in _TICKS.findall(text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def quote(text: str) -> str:
    """Markdown as somebody wrote it, in a quotation: what it leaves open ends there. Its HTML is text."""
    lines: list[str] = []
    indent, fence = 0, ""
    for line in text.splitlines():
        found = _FENCE.match(line)
        if fence and line.strip() and len(line) - len(line.lstrip(" ")) < indent:
            fence = ""  # it was in a list, which has ended
        if fence:
            if found and found[2].startswith(fence) and not line[found.end() :].strip():
                fence = ""
        elif found:
            indent, fence = len(found[1]), found[2]
        else:
            line = _TAG.sub("&lt;", line)  # also in code within a line, which may begin and end in any other
        lines.append(f"> {line}".rstrip())
    return "\n".join(lines) or ">"


def inline(text: str) -> str:
    """On one line, as it is: without a meaning in Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


@dataclass
class _Use:
    """A tool use, which stands where it was made with all that came of it later."""

    run_id: str | None
    parts: list[str]
    done: bool = False

    @property
    def text(self) -> str:
        return "\n\n".join(self.parts)


@dataclass
class Transcript:
    """Turns the events of one thread into blocks of Markdown; holds back what is not complete."""

    level: int = 2
    threads: list[ThreadCreated] = field(default_factory=list[ThreadCreated])
    """Those that were met."""
    _blocks: list[str | _Use] = field(default_factory=list["str | _Use"])
    _uses: dict[str, _Use] = field(default_factory=dict[str, _Use])
    _waiting: list[Event] = field(default_factory=list[Event])
    _begun: set[str | None] = field(default_factory=set["str | None"])
    _over: set[str | None] = field(default_factory=set["str | None"])
    _deferred: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """By message: the run that it was handed on to."""
    _withdrawn: dict[str | None, str] = field(default_factory=dict["str | None", str])
    """Runs that ended before they had begun, and how that is said. Right behind stands what was handed on."""

    def take(self, event: Event) -> list[str]:
        """The blocks that are complete with this event."""
        self._take(event)
        ready: list[str] = []
        while self._blocks and (isinstance(self._blocks[0], str) or self._blocks[0].done):
            block = self._blocks.pop(0)
            ready.append(block if isinstance(block, str) else block.text)
        return ready

    def end(self) -> list[str]:
        """What is left: nobody has read it, or nothing has come of it."""
        self._withdraw()
        for event in self._waiting:
            self._message(event, "not read yet")
        return [block if isinstance(block, str) else block.text for block in self._blocks]

    def _take(self, event: Event) -> None:
        match event.payload:
            case SessionSteer(event_id=message, status="deferred"):
                self._deferred[message] = event.run_id
                return
            case RunQueued():
                return
            case _:
                self._withdraw()
        match event.payload:
            case UserMessage() | SystemMessage() | ThreadMessageReceived(tool_use_id=None):
                self._waiting.append(event)
            case ModelRequestStart():
                self._begun.add(event.run_id)
                self._enter(event.run_id)
            case AgentMessage(content=content, interrupted=interrupted):
                self._head("Agent", event, "interrupted" if interrupted else "")
                self._blocks.append(quote(plain(content)))
            case AgentThinking(text=text) if text:
                self._blocks.append(folded("Thinking", code(text, "text")))
            case AgentToolUse(name=name, input=arguments) | AgentCustomToolUse(name=name, input=arguments):
                self._use(event, name, arguments)
            case AgentMcpToolUse(mcp_server_name=server, name=name, input=arguments):
                self._use(event, f"{server}: {name}", arguments)
            case AgentPlan(items=items):
                marks = {"completed": "x", "in_progress": "-", "pending": " "}
                self._blocks.append("\n".join(f"- [{marks[item.status]}] {inline(item.content)}" for item in items))
            case ThreadCreated(session_thread_id=thread, agent_name=name):
                self.threads.append(event.payload)
                self._blocks.append(f"_Delegated to {inline(name)}: thread {inline(thread)}, below._")
            case SessionError(error=error):
                self._blocks.append(f"_Error: {inline(error.message)}_")
            case RunCompleted() | RunFailed() | RunCancelled() | RunTerminated():
                self._end_run(event)
            case _:
                self._of_use(event)

    def _of_use(self, event: Event) -> None:
        match event.payload:
            case AgentToolResult(tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, is_error)
            case AgentMcpToolResult(mcp_tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, is_error)
            case UserCustomToolResult(custom_tool_use_id=use, content=content, is_error=is_error):
                self._result(use, content, bool(is_error))
            case AgentQuestion(tool_use_id=use, question=question, choices=choices):
                offered = "" if choices is None else "\n\n" + "\n".join(f"- {inline(choice)}" for choice in choices)
                self._add(use, f"**Question:**\n\n{quote(question)}{offered}")
            case UserAnswer(tool_use_id=use, content=content):
                self._add(use, f"**Answer:**\n\n{quote(plain(content))}")
            case ApprovalResolved(tool_use_id=use, status=status, reason=reason, edited_input=edited):
                self._add(use, f"**{status.capitalize()}**" + (f": {inline(reason)}" if reason else "."))
                if edited is not None:
                    self._add(use, f"With other arguments:\n\n{_json(edited)}")
            case ApprovalExpired(tool_use_id=use):
                self._add(use, "**Nobody decided in time.**")
            case ApprovalCancelled(tool_use_id=use):
                self._add(use, "**Nobody was asked any more.**")
            case AgentArtifact(tool_use_id=use, name=name, size_bytes=size, media_type=media_type, artifact_id=id):
                self._add(use, f"**Artifact:** {inline(name)} ({size:,} bytes, {inline(media_type)}, {inline(id)})")
            case ExternalEvent(tool_use_id=use, event_type=kind, data=data):
                self._add(use, f"**Event** {inline(kind)}\n\n{_json(data)}")
            case _:
                pass

    def _use(self, event: Event, name: str, arguments: dict[str, JsonValue]) -> None:
        use = _Use(event.run_id, [f"**Tool:** {inline(name)}", _json(arguments)])
        self._uses[event.id] = use
        self._blocks.append(use)

    def _result(self, use_id: str, content: Iterable[TextContent], is_error: bool) -> None:
        self._add(use_id, f"{'Error' if is_error else 'Result'}:\n\n{code(plain(content))}")
        if use := self._uses.pop(use_id, None):
            use.done = True

    def _add(self, use_id: str, text: str) -> None:
        if use := self._uses.get(use_id):
            use.parts.append(text)

    def _enter(self, run_id: str | None) -> None:
        self._close(run_id)
        entering = [event for event in self._waiting if self._reader(event) in (run_id, *self._over)]
        self._waiting = [event for event in self._waiting if event not in entering]
        for event in entering:
            self._message(event)

    def _reader(self, message: Event) -> str | None:
        return self._deferred.get(message.id, message.run_id)

    def _withdraw(self) -> None:
        for run_id, ending in self._withdrawn.items():
            for message in [message for message in self._waiting if self._reader(message) == run_id]:
                self._waiting.remove(message)
                self._message(message, "withdrawn before it was read")
            self._blocks += [ending] if ending else []
        self._withdrawn.clear()

    def _end_run(self, event: Event) -> None:
        self._close(event.run_id)
        ending = _ending(event)
        if event.run_id not in self._begun:
            self._withdrawn[event.run_id] = ending
            return
        self._over.add(event.run_id)
        self._blocks += [ending] if ending else []

    def _close(self, run_id: str | None) -> None:
        for id, use in list(self._uses.items()):
            if use.run_id == run_id:
                use.parts.append("_No result._")
                use.done = True
                del self._uses[id]

    def _message(self, event: Event, note: str = "") -> None:
        assert isinstance(event.payload, UserMessage | SystemMessage | ThreadMessageReceived)
        self._head(_FROM[event.type], event, note)
        self._blocks.append(quote(plain(event.payload.content)))

    def _head(self, who: str, event: Event, note: str = "") -> None:
        moment = wire(event.created_at)[:16].replace("T", " ")
        self._blocks.append(f"{'#' * self.level} {who} · {moment} UTC" + (f" · {note}" if note else ""))


def _ending(event: Event) -> str:
    match event.payload:
        case RunFailed(error=error):
            return f"_The run failed: {inline(error.message)}_"
        case RunCancelled(reason=reason) | RunTerminated(reason=reason):
            return "_The run was stopped" + (f": {inline(reason)}_" if reason else "._")
        case _:
            return ""


def _json(value: dict[str, JsonValue]) -> str:
    return code(json.dumps(value, ensure_ascii=False, indent=2), "json")
