"""A run as it happens: the text as it is written, reasoning dimmed, a line for each tool call, a line of progress.

The final event of a text is authoritative and nothing is shown twice: a preview is completed by its final event, or marked
void when its model call failed. Without a terminal previews are left out, and the last answer goes to stdout alone.
"""

import json
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from types import FrameType, TracebackType
from typing import Self

from pydantic import JsonValue, ValidationError
from rich.console import RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from commands.connection import Frame
from commands.frames import Done, Envelope, EventDelta, EventStart
from commands.show import Screen, clean, money, one_line, tokens
from domain import events
from domain.transcript import plain
from domain.usage import Cost, Usage, cost_of

INPUT_CHARS = 70
RESULT_CHARS = 70
_THINKING, _TEXT, _WRONG = "dim italic", "", "red"


@contextmanager
def uninterrupted() -> Generator[None]:
    """Ctrl-C inside takes effect at the end: in the middle of Rich's work it leaves a display that cannot be stopped."""
    pressed: list[int] = []

    def remember(number: int, at: FrameType | None) -> None:
        pressed.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@dataclass
class Block:
    """A text being written: what is on the screen of it, and what the stream has sent since it last began at the start."""

    style: str
    run_id: str | None = None
    """None: the stream was taken up in the middle of it."""
    shown: str = ""
    received: str = ""


@dataclass
class Tally:
    """What the run has used so far."""

    usage: Usage = field(default_factory=Usage)
    nano_usd: int | None = 0
    steps: int = 0
    started_at: datetime | None = None
    since: float = field(default_factory=monotonic)

    def add(self, end: events.ModelRequestEnd) -> None:
        if not end.is_error or end.model_usage.output_tokens:
            self.steps += end.purpose is None
            self.usage += end.model_usage
            # A call of unknown price makes the sum unknown, as in the run itself.
            self.nano_usd = None if end.cost is None or self.nano_usd is None else self.nano_usd + end.cost.nano_usd

    @property
    def cost(self) -> Cost | None:
        return cost_of(self.nano_usd)


class Story:
    """Show the frames of a stream, in their order. `typed` is the message that the person has before their eyes already."""

    def __init__(self, screen: Screen, typed: str | None = None) -> None:
        self.status: str | None = None
        """How the run ended, once its stream has."""
        self.over: set[str] = set()
        """The ids of the runs that have ended."""
        self.asking: str | None = None
        """The id of the run that waits for the answer to a question: this one, or a sub-agent's."""
        self._screen = screen
        self._typed = typed
        self._blocks: dict[str, Block] = {}
        self._open: str | None = None
        self._uses: dict[str, tuple[str, dict[str, JsonValue]]] = {}
        self._questions: dict[str, str] = {}
        self._held: list[str] = []
        self._tally = Tally()
        self._doing = "waiting to start"
        self._spinner = Spinner("dots", style="dim")
        self._live: Live | None = None

    @uninterrupted()
    def __enter__(self) -> Self:
        self._progress()
        return self

    @uninterrupted()
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._break_line()
        self._stop_progress()
        self._release_held()

    @uninterrupted()
    def dropped(self, why: str) -> None:
        """The connection broke; the stream is being taken up again."""
        self._line(lost(why), "yellow")

    @contextmanager
    def aside(self) -> Generator[None]:
        """Leave the screen to somebody else inside the block."""
        with uninterrupted():
            self._break_line()
            self._stop_progress()
        yield
        with uninterrupted():
            self._progress()

    @uninterrupted()
    def show(self, frame: Frame) -> None:
        match frame.event:
            case "event_start":
                start = EventStart.model_validate_json(frame.data)
                style = _style(start.event.type == "agent.thinking")
                self._blocks.setdefault(start.event.id, Block(style, start.run_id)).received = ""
            case "event_delta":
                self._preview(EventDelta.model_validate_json(frame.data))
            case "done":
                self.status = Done.model_validate_json(frame.data).status
            case _:
                content = frame.json()
                try:
                    payload = events.payloads.validate_python(content)
                except ValidationError:
                    return  # a type of event that this version does not know
                self._event(Envelope.model_validate(content), payload)

    def _event(self, at: Envelope, payload: events.EventPayload) -> None:
        match payload:
            case events.UserMessage():
                self._message(plain(payload.content))
            case events.AgentThinking():
                self._final(at.id, payload.text, _THINKING, payload.interrupted)
            case events.AgentMessage():
                self._final(at.id, plain(payload.content), _TEXT, payload.interrupted, beside=at.is_subagents)
            case events.AgentToolUse():
                self._use(at.id, payload.name, payload.input)
            case events.AgentMcpToolUse():
                self._use(at.id, f"{payload.mcp_server_name}: {payload.name}", payload.input)
            case events.AgentToolResult():
                self._result(payload.tool_use_id, payload)
            case events.AgentMcpToolResult():
                self._result(payload.mcp_tool_use_id, payload)
            case events.AgentQuestion():
                self._ask(at, payload)
            case events.ApprovalRequested():
                self._ask_approval(payload)
            case events.RunWaiting():
                what = "an event" if payload.waiting_for == "event" else "a time"
                self._doing = f"waiting for {what}"
            case events.ContextCompacted():
                done = "compacted" if payload.summary is not None else "cut"
                sizes = f"{payload.tokens_before:,} → {payload.tokens_after:,} tokens"
                self._line(f"· the model's context was {done}: {sizes}", "dim")
            case events.UserAnswer():
                self._answered(payload.tool_use_id)
            case events.ModelRequestStart():
                self._release_held()
                self._doing = f"calling {payload.model}"
                self._progress()
            case events.ModelRequestEnd():
                self._tally.add(payload)
                if payload.is_error:
                    self._void(payload.error.message if payload.error else "the model call failed", at.run_id)
                self._doing = "going on"
                self._progress()
            case events.SessionError(error=events.McpErrorDetail() as error):
                self._line(f"✗ the tools of the MCP server {error.mcp_server_name} are missing: {error.message}", _WRONG)
            case events.SessionError() if payload.error.retry_status.type == "retrying":
                # A failure for good is told once, by the end of the run.
                self._line(f"✗ model call failed: {payload.error.message} Trying again.", _WRONG)
            case _ if not at.is_subagents:  # the end of a sub-agent is the result of a tool use
                self._run_event(at, payload)
            case _:
                pass

    def _run_event(self, at: Envelope, payload: events.EventPayload) -> None:
        match payload:
            case events.RunQueued():
                self.over.discard(at.run_id or "")
                if payload.attempt > 1:
                    self._line(f"— attempt {payload.attempt} —", "dim")
            case events.RunStarted():
                self._tally = Tally(started_at=at.created_at)
            case events.RunPaused():
                why = f" ({payload.stop_reason.type})" if payload.stop_reason else ""
                self._line(f"Paused{why}. Go on with: perdure runs resume {at.run_id}", "yellow")
                self._doing = "paused"
            case events.RunResumed():
                self._line("Resumed.", "yellow")
            case events.RunCompleted():
                reason = payload.stop_reason.type
                self._over(at, "completed" if reason == "end_turn" else f"completed: {reason}", completed=True)
            case events.RunFailed():
                self._over(at, f"failed: {payload.error.code}: {payload.error.message}")
            case events.RunCancelled():
                self._over(at, f"cancelled: {payload.reason}" if payload.reason else "cancelled")
            case events.RunTerminated():
                self._over(at, f"terminated: {payload.reason}" if payload.reason else "terminated")
            case _:
                pass

    def _preview(self, piece: EventDelta) -> None:
        if not self._screen.is_terminal:
            return
        content = piece.delta.content
        thinking = content.type == "thinking"
        block = self._blocks.setdefault(piece.event_id, Block(_style(thinking)))
        block.received += content.thinking if thinking else content.text
        # After a break of the connection a text may come from its start again.
        if len(block.received) > len(block.shown):
            self._write(piece.event_id, block.received[len(block.shown) :], block.style)
            block.shown = block.received

    def _final(self, id: str, text: str, style: str, interrupted: bool, *, beside: bool = False) -> None:
        if not self._screen.is_terminal:
            if style == _TEXT and not beside:
                self._held.append(text)
            else:
                self._screen.note(text)
            return
        shown = self._blocks.pop(id, Block(style)).shown
        if not text.startswith(shown):
            self._line("↻ what stands above was changed; it reads:", "yellow")
            shown = ""
        if rest := text[len(shown) :]:
            self._write(id, rest, style)
        if self._open == id:
            self._break_line()
        if interrupted:
            self._line("⏸ interrupted here", "yellow")

    def _void(self, why: str, run_id: str | None = None) -> None:
        """What the run has open when its model call ends, or whatever is open, will never be final."""
        void = {id: block for id, block in self._blocks.items() if run_id is None or block.run_id in (run_id, None)}
        for id in void:
            del self._blocks[id]
        if any(block.shown for block in void.values()):
            self._line(f"✗ void: what this model call wrote above does not count ({one_line(why, 80)})", _WRONG)

    def _message(self, text: str) -> None:
        if text == self._typed:
            self._typed = None
            return
        self._line(f"› {text}", "bold")

    def _use(self, id: str, name: str, arguments: dict[str, JsonValue]) -> None:
        self._release_held()
        self._uses[id] = (name, arguments)
        self._doing = f"running {name}"
        self._progress()

    def _result(self, tool_use_id: str, result: events.AgentToolResult | events.AgentMcpToolResult) -> None:
        name, arguments = self._uses.pop(tool_use_id, ("tool", None))
        named = name if arguments is None else f"{name} {one_line(json.dumps(arguments, ensure_ascii=False), INPUT_CHARS)}"
        outcome = one_line(plain(result.content), RESULT_CHARS)
        took = f" ({result.duration_ms} ms)" if result.duration_ms is not None else ""
        mark, style = ("✗", _WRONG) if result.is_error else ("✓", "cyan")
        self._line(f"{mark} {named} → {outcome}{took}", style)
        self._answered(tool_use_id)

    def _ask(self, at: Envelope, asked: events.AgentQuestion) -> None:
        self._questions[asked.tool_use_id] = self.asking = at.run_id or ""
        self._line(f"? {asked.question}", "bold yellow")
        self._line(f"  Answer with: perdure runs input {at.run_id} TEXT", "dim")
        self._doing = "waiting for an answer"

    def _ask_approval(self, asked: events.ApprovalRequested) -> None:
        arguments = one_line(json.dumps(asked.input, ensure_ascii=False), RESULT_CHARS)
        self._line(f"? May it call {asked.name} {arguments}", "bold yellow")
        self._line(f"  Decide with: perdure approvals approve {asked.approval_id}    (or deny)", "dim")
        self._doing = "waiting for approval"

    def _answered(self, tool_use_id: str) -> None:
        self._questions.pop(tool_use_id, None)
        self.asking = next(iter(self._questions.values()), None)

    def _over(self, at: Envelope, how: str, *, completed: bool = False) -> None:
        self._void("the run ended before it was whole")
        if completed:
            for text in self._held:
                self._screen.answer(text)
            self._held.clear()
        self._release_held()
        since = self._tally.started_at or at.created_at
        took = f"{(at.created_at - since).total_seconds():.1f} s"
        line = f"{how} · {self._figures(took)} · {at.run_id}"
        self._break_line()
        self._stop_progress()
        self._screen.note(f"✓ {line}" if completed else f"✗ {line}", "dim" if completed else _WRONG)
        self._questions.clear()
        self.asking = None
        self.over.add(at.run_id or "")
        self._doing = "waiting"

    def _figures(self, took: str) -> str:
        tally = self._tally
        steps = f"{tally.steps} step{'' if tally.steps == 1 else 's'}"
        return f"{steps} · {tokens(tally.usage)} · {money(tally.cost)} · {took}"

    def _release_held(self) -> None:
        """Texts that were not the last answer."""
        for text in self._held:
            self._screen.note(text)
        self._held.clear()

    def _write(self, id: str, text: str, style: str) -> None:
        self._stop_progress()
        if self._open != id:
            self._break_line()
        self._open = id
        self._screen.out.print(Text(clean(text), style=style), end="")

    def _break_line(self) -> None:
        if self._open is not None:
            self._screen.out.print()
            self._open = None

    def _line(self, text: str, style: str) -> None:
        self._break_line()
        self._stop_progress()
        self._screen.note(text, style)
        self._progress()

    def _progress(self) -> None:
        """Show the line of progress under what is written, unless a text is being written."""
        if self._screen.is_terminal and self._open is None and self._live is None and self.status is None:
            self._live = Live(
                get_renderable=self._progress_line, console=self._screen.out, transient=True, refresh_per_second=10
            )
            self._live.start()

    def _stop_progress(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _progress_line(self) -> RenderableType:
        took = f"{monotonic() - self._tally.since:.1f} s"
        text = f"{clean(self._doing)} · {self._figures(took)}"
        # One row: a longer line would leave its first rows behind on the screen.
        width = max(10, self._screen.out.width - 4)
        self._spinner.update(text=Text(text[:width], style="dim"))
        return self._spinner


def lost(why: str) -> str:
    return f"⟳ connection lost ({one_line(why, 80)}), taking it up again"


def _style(thinking: bool) -> str:
    return _THINKING if thinking else _TEXT
