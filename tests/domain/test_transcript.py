"""The model's context: a pure function of the log."""

from itertools import pairwise

from domain.clock import now
from domain.completions import Text, ToolResult, ToolUse
from domain.events import (
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentToolResult,
    AgentToolUse,
    Event,
    EventPayload,
    ModelRequestStart,
    RunCancelled,
    RunCompleted,
    SystemMessage,
    TextContent,
    UserMessage,
)
from domain.mcp import tool_name
from domain.queue_events import QueueUpdated, SessionSteer
from domain.runs import StopReason
from domain.transcript import INTERRUPTED_NOTE, LOST_RESULT, SYSTEM_NOTE, Transcript, fold


def log(*entries: tuple[str, EventPayload]) -> list[Event]:
    """Events of the runs that the first members name, under ids `e1`, `e2` …"""
    return [
        Event(
            id=f"e{seq}",
            seq=seq,
            session_id="s",
            run_id=run,
            created_at=now(),
            processed_at=now(),
            payload=payload,
        )
        for seq, (run, payload) in enumerate(entries, 1)
    ]


def asks(text: str) -> UserMessage:
    return UserMessage(content=(TextContent(text=text),))


def tells(text: str) -> SystemMessage:
    return SystemMessage(content=(TextContent(text=text),))


def says(text: str, *, interrupted: bool = False) -> AgentMessage:
    return AgentMessage(content=(TextContent(text=text),), interrupted=interrupted)


def result(tool_use_id: str, text: str) -> AgentToolResult:
    return AgentToolResult(tool_use_id=tool_use_id, content=(TextContent(text=text),))


START = ModelRequestStart(model="m", attempt=1)
USE = AgentToolUse(name="read", input={})


def texts(events: list[Event]) -> list[tuple[str, list[str]]]:
    def show(block: object) -> str:
        if isinstance(block, Text):
            return block.text
        return f"result:{block.content}" if isinstance(block, ToolResult) else "use"

    transcript = Transcript()
    for number, event in enumerate(events, 1):
        transcript.take(event)
        assert transcript.messages() == fold(events[:number])  # asking in between changes nothing
    return [(message.role, [show(block) for block in message.content]) for message in transcript.messages()]


def test_a_queued_message_enters_at_its_own_turn_not_where_it_stands() -> None:
    events = log(
        ("r1", asks("one")),
        ("r1", START),
        ("r1", USE),
        ("r2", asks("two")),  # queued while the first turn was between a tool use and its result
        ("r1", result("e3", "found")),
        ("r1", START),
        ("r1", says("first answer")),
        ("r2", START),
    )
    assert texts(events) == [
        ("user", ["one"]),
        ("assistant", ["use"]),
        ("user", ["result:found"]),
        ("assistant", ["first answer"]),
        ("user", ["two"]),
    ]


def test_input_during_a_call_follows_that_calls_answer() -> None:
    events = log(("r1", asks("one")), ("r1", START), ("r1", asks("more")), ("r1", says("answer")), ("r1", START))
    assert texts(events) == [("user", ["one"]), ("assistant", ["answer"]), ("user", ["more"])]


def test_input_too_late_for_its_run_is_read_by_the_next_but_a_withdrawn_turn_is_not() -> None:
    events = log(
        ("r1", asks("one")),
        ("r1", START),
        ("r2", asks("withdrawn")),
        ("r2", RunCancelled()),
        ("r1", asks("late")),
        ("r1", says("answer")),
        ("r1", RunCompleted(stop_reason=StopReason(type="max_steps"))),
        ("r3", asks("three")),
        ("r3", START),
    )
    assert texts(events) == [("user", ["one"]), ("assistant", ["answer"]), ("user", ["late", "three"])]


def test_an_interrupted_answer_is_kept_and_the_model_told() -> None:
    events = log(("r1", asks("one")), ("r1", START), ("r1", says("half", interrupted=True)), ("r1", START))
    assert texts(events)[-2:] == [("assistant", ["half"]), ("user", [INTERRUPTED_NOTE])]


def test_a_tool_use_without_a_result_gets_one() -> None:
    events = log(("r1", asks("one")), ("r1", START), ("r1", USE), ("r2", asks("two")), ("r2", START))
    assert texts(events)[-1] == ("user", [f"result:{LOST_RESULT}", "two"])


def test_the_past_never_changes_as_the_log_grows() -> None:
    events = log(
        ("r1", asks("one")),
        ("r1", START),
        ("r1", USE),
        ("r1", result("e3", "x")),
        ("r1", START),
        ("r1", says("done")),
        ("r2", asks("two")),
        ("r2", START),
        ("r2", says("done too")),
    )
    calls = [index for index, event in enumerate(events, 1) if isinstance(event.payload, ModelRequestStart)]
    contexts = [fold(events[:index]) for index in calls]
    for shorter, longer in pairwise(contexts):
        assert longer[: len(shorter)] == shorter


def test_an_mcp_use_has_the_name_that_the_model_called_it_by() -> None:
    use = AgentMcpToolUse(mcp_server_name="maps", name="find.place", input={"q": "x"})
    events = log(
        ("r1", asks("one")),
        ("r1", START),
        ("r1", use),
        ("r1", AgentMcpToolResult(mcp_tool_use_id="e3", content=(TextContent(text="here"),))),
        ("r1", START),
    )
    (_, called, answered) = fold(events)
    assert called.content == (ToolUse(id="e3", name=tool_name("maps", "find.place"), input={"q": "x"}),)
    assert answered.content == (ToolResult(tool_use_id="e3", content="here"),)


def test_a_steered_message_that_came_too_late_enters_where_its_turn_begins() -> None:
    """Also where another turn was put ahead of that, and where its own had not begun."""
    done = RunCompleted(stop_reason=StopReason(type="max_steps"))
    events = log(
        ("run_1", asks("one")),
        ("run_1", asks("steered")),
        ("run_2", asks("two")),
        ("run_1", RunCancelled()),
        ("run_3", SessionSteer(event_id="e2", status="deferred")),
        ("run_2", ModelRequestStart(model="m", attempt=1)),
        ("run_2", AgentMessage(content=(TextContent(text="second"),))),
        ("run_2", done),
        ("run_3", ModelRequestStart(model="m", attempt=1)),
    )
    assert [message.content for message in fold(events)] == [
        (Text(text="two"),),
        (Text(text="second"),),
        (Text(text="steered"),),
    ]


def test_a_queued_message_enters_as_it_was_edited_last() -> None:
    def edit(text: str) -> QueueUpdated:
        return QueueUpdated(event_id="e1", content=(TextContent(text=text),))

    start = ModelRequestStart(model="m", attempt=1)
    events = log(("r", asks("one")), ("r", edit("two")), ("r", edit("three")), ("r", start), ("r", edit("four")))
    transcript = Transcript()
    for event in events:
        transcript.take(event)
    assert [message.content for message in transcript.messages()] == [(Text(text="three"),)]


def test_a_system_message_enters_behind_its_message_and_goes_where_that_goes() -> None:
    done = RunCompleted(stop_reason=StopReason(type="max_steps"))
    note = SYSTEM_NOTE.format("{told}")
    events = log(
        ("r1", asks("one")),
        ("r1", tells("{told}")),
        ("r1", START),
        ("r2", asks("withdrawn")),
        ("r2", tells("withdrawn too")),
        ("r2", RunCancelled()),
        ("r1", asks("steered")),
        ("r1", tells("{told}")),
        ("r1", says("answer")),
        ("r1", done),
        ("r4", SessionSteer(event_id="e7", status="deferred")),
        ("r4", SessionSteer(event_id="e8", status="deferred")),
        ("r3", asks("three")),
        ("r3", START),
        ("r3", says("third")),
        ("r3", done),
        ("r4", START),
    )
    assert texts(events) == [
        ("user", ["one", note]),
        ("assistant", ["answer"]),
        ("user", ["three"]),
        ("assistant", ["third"]),
        ("user", ["steered", note]),
    ]


def test_a_system_message_with_a_result_waits_for_the_other_results() -> None:
    """Vendors want all of them before anything else."""
    events = log(
        ("r1", asks("one")),
        ("r1", START),
        ("r1", USE),
        ("r1", USE),
        ("r1", result("e3", "x")),
        ("r1", tells("told")),
        ("r1", result("e4", "y")),
        ("r1", START),
    )
    assert texts(events)[-1] == ("user", ["result:x", "result:y", SYSTEM_NOTE.format("told")])
