"""The same frames on a terminal and without one."""

import io
import json
import re

import pytest
from pydantic import JsonValue
from rich.console import Console

from commands.connection import Frame
from commands.frames import log_line
from commands.show import Screen
from commands.story import Story
from domain.clock import now
from domain.events import (
    AgentMessage,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    Event,
    EventPayload,
    ModelRequestEnd,
    ModelRequestStart,
    RunCompleted,
    RunFailed,
    RunQueued,
    RunStarted,
    TextContent,
    UserMessage,
)
from domain.runs import RunError, StopReason
from domain.usage import Cost, Usage

START = ModelRequestStart(model="demo:demo", attempt=1)
COMPLETED = RunCompleted(stop_reason=StopReason(type="end_turn"))


def text(words: str) -> tuple[TextContent, ...]:
    return (TextContent(text=words),)


def end(cost: str | None = "0.01", error: RunError | None = None) -> ModelRequestEnd:
    return ModelRequestEnd(
        model_request_start_id="sevt_start",
        is_error=error is not None,
        model_usage=Usage() if error else Usage(input_tokens=1200, output_tokens=30, cache_read_input_tokens=1000),
        cost=Cost(amount=cost) if cost else None,
        duration_ms=5,
        attempt=1,
        error=error,
    )


class Frames:
    """Frames as the service sends them."""

    def __init__(self) -> None:
        self.seq = 0
        self.run_id = "run_1"

    def event(self, payload: EventPayload, id: str | None = None) -> Frame:
        self.seq += 1
        event = Event(
            id=id or f"sevt_{self.seq}",
            seq=self.seq,
            session_id="sesn_1",
            run_id=self.run_id,
            created_at=now(),
            processed_at=None,
            payload=payload,
        )
        return Frame(str(self.seq), payload.type, json.dumps(event.wire()))

    def opening(self, id: str, kind: str = "agent.message") -> Frame:
        data = f'{{"type":"event_start","event":{{"type":"{kind}","id":"{id}"}},"run_id":"{self.run_id}"}}'
        return Frame(f"{self.seq}.{id}.0", "event_start", data)

    def delta(self, id: str, words: str, kind: str = "text") -> Frame:
        content = f'{{"type":"{kind}","{kind}":"{words}"}}'
        data = f'{{"type":"event_delta","event_id":"{id}","delta":{{"type":"content_delta","index":0,"content":{content}}}}}'
        return Frame(f"{self.seq}.{id}.{len(words)}", "event_delta", data)


def on_terminal(*frames: Frame, typed: str | None = None) -> str:
    """What stands on the screen, without colours and without the line of progress."""
    screen = Screen()
    written = io.StringIO()
    screen.out = Console(file=written, force_terminal=True, color_system=None, soft_wrap=True, highlight=False, width=100)
    screen.is_terminal = True
    with Story(screen, typed) as story:
        for frame in frames:
            story.show(frame)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue().replace("\r", "\n"))
    lines = [line for line in plain.split("\n") if line.strip() and not re.match(r"[⠀-⣿] ", line)]
    return "\n".join(lines)


def test_a_text_is_shown_as_it_is_written_and_only_once() -> None:
    f = Frames()
    shown = on_terminal(
        f.event(UserMessage(content=text("hello"))),
        f.event(RunQueued()),
        f.event(RunStarted()),
        f.event(START),
        f.opening("sevt_t", "agent.thinking"),
        f.delta("sevt_t", "Let me ", "thinking"),
        f.delta("sevt_t", "see.", "thinking"),
        f.opening("sevt_m"),
        f.delta("sevt_m", "One two "),
        # Here the connection broke: previews come from their start again.
        f.opening("sevt_t", "agent.thinking"),
        f.delta("sevt_t", "Let me see.", "thinking"),
        f.opening("sevt_m"),
        f.delta("sevt_m", "One two three "),
        f.event(AgentThinking(text="Let me see."), "sevt_t"),
        f.event(AgentMessage(content=text("One two three four.")), "sevt_m"),
        f.event(end()),
        f.event(COMPLETED),
        typed="hello",
    )
    told, _, figures = shown.rpartition("\n")
    assert told == "Let me see.\nOne two three four."
    assert re.fullmatch(r"✓ completed · 1 step · 2,200 in \(1,000 cached\) · 30 out · \$0\.01 · 0\.\d s · run_1", figures)


def test_text_of_a_failed_call_is_marked_void_and_its_usage_is_not_counted() -> None:
    f = Frames()
    shown = on_terminal(
        f.event(RunStarted()),
        f.event(START),
        f.delta("sevt_a", "Half an ans"),
        f.event(end(error=RunError(code="provider_truncated", message="It broke off.", retryable=True))),
        f.event(START),
        f.delta("sevt_b", "Half an ans"),
        f.event(AgentMessage(content=text("Half an answer.")), "sevt_b"),
        f.event(end(cost=None)),
        f.event(COMPLETED),
    )
    assert shown.split("\n")[:3] == [
        "Half an ans",
        "✗ void: what this model call wrote above does not count (It broke off.)",
        "Half an answer.",
    ]
    assert "1 step · 2,200 in" in shown
    assert "cost unknown" in shown, "a call of unknown price makes the sum unknown"


def test_what_a_sub_agent_writes_is_not_void_when_another_has_done() -> None:
    f = Frames()
    shown = on_terminal(f.delta("sevt_m", "One "), f.event(end()), f.event(AgentMessage(content=text("One two.")), "sevt_m"))
    assert shown == "One two."


def test_what_a_sub_agent_writes_is_not_void_when_another_has_failed() -> None:
    f = Frames()
    written = [f.opening("sevt_m"), f.delta("sevt_m", "One ")]
    f.run_id = "run_2"
    failed = end(error=RunError(code="provider_truncated", message="It broke off.", retryable=True))
    beside = [f.opening("sevt_n"), f.delta("sevt_n", "Half"), f.event(failed)]
    f.run_id = "run_1"
    whole = [f.delta("sevt_m", "two."), f.event(AgentMessage(content=text("One two.")), "sevt_m")]
    shown = on_terminal(*written, *beside, *whole)
    void = "✗ void: what this model call wrote above does not count (It broke off.)"
    assert shown.split("\n") == ["One ", "Half", void, "two."]


def test_the_final_event_is_authoritative() -> None:
    f = Frames()
    shown = on_terminal(
        f.delta("sevt_a", "I will"), f.event(AgentMessage(content=text("I shall."), interrupted=True), "sevt_a")
    )
    assert shown.split("\n") == ["I will", "↻ what stands above was changed; it reads:", "I shall.", "⏸ interrupted here"]


def test_a_tool_call_is_one_line_with_its_outcome() -> None:
    f = Frames()
    shown = on_terminal(
        f.event(AgentToolUse(name="read", input={"path": "a.txt"}), "sevt_u"),
        f.event(AgentToolUse(name="fetch", input={"url": "x" * 200}), "sevt_v"),
        f.event(AgentToolResult(tool_use_id="sevt_v", content=text("no such host\nmore"), is_error=True, duration_ms=7)),
        f.event(AgentToolResult(tool_use_id="sevt_u", content=text("[bold]first line[/bold]"))),
    )
    lines = shown.split("\n")
    assert len(lines) == 2
    assert re.fullmatch(r'✗ fetch \{"url": "x+… → no such host… \(7 ms\)', lines[0])
    assert lines[1] == '✓ read {"path": "a.txt"} → [bold]first line[/bold]'


def test_what_agents_write_does_not_drive_the_terminal() -> None:
    f = Frames()
    screen = Screen()
    screen.out = Console(file=(written := io.StringIO()), force_terminal=True, color_system=None, soft_wrap=True)
    screen.is_terminal = True
    with Story(screen) as story:
        story.show(f.event(AgentMessage(content=text("a\x1b]0;owned\x07\x1b[31mb\x9b2Jc\rd"))))
    assert "a]0;owned[31mb2Jcd\n" in written.getvalue()


def test_events_of_later_versions_are_passed_over() -> None:
    unknown: dict[str, JsonValue] = {"type": "agent.dream", "id": "sevt_9", "seq": 9, "run_id": None}
    f = Frames()
    shown = on_terminal(Frame("9", "agent.dream", str(unknown).replace("'", '"').replace("None", "null")), f.event(COMPLETED))
    assert shown.startswith("✓ completed")


def test_without_a_terminal_the_last_answer_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    f = Frames()
    with Story(Screen()) as story:
        for shown in (
            f.event(RunStarted()),
            f.event(START),
            f.delta("sevt_a", "I look it up."),
            f.event(AgentThinking(text="Hm.")),
            f.event(AgentMessage(content=text("I look it up.")), "sevt_a"),
            f.event(AgentToolUse(name="read", input={}), "sevt_u"),
            f.event(end()),
            f.event(AgentToolResult(tool_use_id="sevt_u", content=text("42"))),
            f.event(START),
            f.event(AgentMessage(content=text("It is [42]."))),
            f.event(end()),
            f.event(COMPLETED),
        ):
            story.show(shown)
    out, err = capsys.readouterr()
    assert out == "It is [42].\n"
    figures = "✓ completed · 2 steps · 4,400 in (2,000 cached) · 60 out · $0.02"
    for beside in ("Hm.", "I look it up.", "✓ read {} → 42", figures):
        assert err.count(beside) == 1
    assert "It is" not in err


def test_the_answer_of_a_failed_run_is_not_passed_off_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    f = Frames()
    failed = RunFailed(stop_reason=StopReason(type="error"), error=RunError(code="provider_auth", message="No key."))
    with Story(Screen()) as story:
        story.show(f.event(AgentMessage(content=text("half"))))
        story.show(f.event(failed))
    out, err = capsys.readouterr()
    assert out == ""
    assert "half" in err
    assert "failed: provider_auth: No key." in err


def test_a_log_line_says_when_what_and_what_it_says() -> None:
    event: JsonValue = {
        "id": "sevt_1",
        "seq": 4,
        "type": "agent.tool_use",
        "session_id": "sesn_1",
        "run_id": "run_1",
        "created_at": "2026-01-02T03:04:05.678901Z",
        "processed_at": None,
        "name": "read",
        "input": {"path": "a"},
        "malformed": None,
    }
    assert log_line(event) == '03:04:05.678  agent.tool_use              read {"path": "a"}'
