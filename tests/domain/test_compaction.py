"""What a compaction leaves, for any log: what vendors take, and the newest message."""

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.compaction import SUMMARY_SYSTEM, Room, plan, rendered
from domain.completions import Image, Message, Text, ToolResult, ToolUse, tokens_of
from domain.events import (
    AgentToolUse,
    ContextCompacted,
    Event,
    EventPayload,
    ModelRequestEnd,
    ModelRequestStart,
    RunCompleted,
    TextContent,
    UserMessage,
)
from domain.payload import DocumentContent, FileSource, ImageContent, PlainTextSource
from domain.runs import StopReason
from domain.transcript import ASKED_NOTE, INTERRUPTED_NOTE, LEFT_OUT_NOTE, SUMMARY_NOTE, Transcript, fold, plain
from domain.usage import Usage
from tests.domain.test_transcript import START, asks, log, result, says, tells

OVER = RunCompleted(stop_reason=StopReason(type="end_turn"))
Deed = tuple[str, int, int]
ASKED = ("ask", "ask", "queue", "tell")
DEEDS = (*ASKED, "start", "start", "say", "use", "use", "use", "result", "result", "cut", "stop", "over", "end")
DEEDS_DONE = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 200), st.integers(0, 200)), max_size=60)


def compacted(kept_from_seq: int, summary: str | None = "S", result_chars: int | None = None) -> ContextCompacted:
    return ContextCompacted(
        kept_from_seq=kept_from_seq, summary=summary, result_chars=result_chars, tokens_before=0, tokens_after=0
    )


def end(tokens: int) -> ModelRequestEnd:
    return ModelRequestEnd(model_request_start_id="x", model_usage=Usage(input_tokens=tokens), duration_ms=1, attempt=1)


def story(deeds: list[Deed]) -> list[Event]:
    """A log as the service could write it: who does what, as far as the time is right for it."""
    entries: list[tuple[str, EventPayload]] = []
    run, asked, calling = 0, False, False
    told = False
    """Whether there is something that the model has not answered."""
    open_uses: list[str] = []
    for number, (deed, one, other) in enumerate(deeds):
        name, next_id = f"r{run:02}", f"e{len(entries) + 1}"
        match deed:
            case "ask":
                entries.append((name, asks(f"question {number}")))
                asked = told = True
            case "queue":
                entries.append((f"r{run + 1:02}", asks(f"later {number}")))
            case "tell" if entries and entries[-1][1].type in ("user.message", "agent.tool_result"):
                entries.append((entries[-1][0], tells(f"context {number}")))
            case "start" if asked and told:
                entries.append((name, START))
                calling, open_uses = True, []
            case "say" | "stop" if calling:
                entries.append((name, says(f"answer {number}", interrupted=deed == "stop")))
                calling, told = deed == "say", deed == "stop"
            case "use" if calling:
                entries.append((name, AgentToolUse(name="read", input={"n": number})))
                open_uses.append(next_id)
                told = True
            case "result" if open_uses:
                calling = False
                use = open_uses.pop(one % len(open_uses))
                entries.append((name, result(use, "found " * (other % 40))))
            case "end" if calling:
                entries.append((name, end(one)))
            case "cut" if entries:
                chars = other if other % 3 == 0 else None
                entries.append((name, compacted(one % (len(entries) + 2), f"S{number}" if other % 2 else None, chars)))
            case "over" if asked:
                entries.append((name, OVER))
                run, calling, open_uses = run + 1, False, []
                asked = told = f"r{run:02}" in {who for who, _ in entries}
            case _:
                pass
    return log(*entries)


def check(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    assert roles == [("user", "assistant")[at % 2] for at in range(len(roles))]
    assert roles[-1] == "user"
    uses: list[str] = []
    for message in messages:
        results = [block.tool_use_id for block in message.content if isinstance(block, ToolResult)]
        assert message.content
        if message.role == "user":
            assert sorted(results) == sorted(uses)
        uses = [block.id for block in message.content if isinstance(block, ToolUse)]


@settings(max_examples=300, deadline=None)
@given(DEEDS_DONE)
def test_every_request_is_one_that_vendors_take(deeds: list[Deed]) -> None:
    transcript = Transcript()
    newest, waiting = "", list[Event]()
    before: tuple[Message, ...] | None = None
    for event in story(deeds):
        transcript.take(event)
        match event.payload:
            case UserMessage():
                waiting.append(event)
            case ContextCompacted():
                before = None
            case ModelRequestStart():
                messages = transcript.messages()
                check(messages)
                mine = [one.payload for one in waiting if one.run_id == event.run_id]
                late = [one for one in waiting if (one.run_id or "") < (event.run_id or "")]
                waiting = [one for one in waiting if (one.run_id or "") > (event.run_id or "")]
                if mine or late:
                    newest = plain(mine[-1].content) if mine and isinstance(mine[-1], UserMessage) else ""
                if before is not None:
                    assert messages[: len(before) - 1] == before[:-1]
                    last, then = before[-1], messages[len(before) - 1]
                    assert then.content[: len(last.content)] == last.content
                before = messages if messages[-1].content[-1:] != (Text(text=INTERRUPTED_NOTE),) else None
                texts = [block.text for message in messages for block in message.content if isinstance(block, Text)]
                assert newest in "".join(texts)
            case _:
                pass


@given(
    st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 200), st.integers(0, 200)), max_size=60), st.integers(50, 2000)
)
def test_a_plan_cuts_where_the_fold_does_and_makes_room(deeds: list[Deed], window: int) -> None:
    transcript = Transcript()
    for event in story(deeds):
        transcript.take(event)
    wanted = plan(transcript, Room(window, 0))
    if wanted is None:
        return
    before = sum(tokens_of(block) for message in transcript.messages() for block in message.content)
    done = wanted.done(transcript, "short")
    gone = wanted.gone
    event = log(("r", compacted(0)))[0].model_copy(update={"seq": 10_000, "payload": done})
    kept = [one.message for one in transcript.said()[len(gone) :]]
    transcript.take(event)

    assert sum(tokens_of(block) for message in transcript.messages() for block in message.content) < before
    assert len(transcript.said()) - len(kept) in (0, 1)
    assert wanted.request("m", 1).system == SUMMARY_SYSTEM


def test_the_summary_stands_for_what_is_older_and_the_next_for_both() -> None:
    events = log(
        ("r1", asks("one")), ("r1", START), ("r1", says("first")), ("r1", OVER),
        ("r2", asks("two")), ("r2", START), ("r2", says("second")), ("r2", OVER),
        ("r3", asks("three")), ("r3", START), ("r3", compacted(6, "about one")), ("r3", START), ("r3", says("third")),
        ("r3", OVER),
        ("r4", asks("four")), ("r4", START), ("r4", compacted(16, "about all")),
    )  # fmt: skip
    first, *rest = fold(events[:11])
    assert first.content == (Text(text=SUMMARY_NOTE.format("about one")), Text(text="two"))
    assert [message.content for message in rest] == [(Text(text="second"),), (Text(text="three"),)]
    assert fold(events) == (Message(role="user", content=(Text(text=SUMMARY_NOTE.format("about all")), Text(text="four"))),)


def test_without_a_summary_the_last_one_stays_and_a_note_says_it() -> None:
    events = log(
        ("r1", asks("one")), ("r1", START), ("r1", says("first")),
        ("r2", asks("two")), ("r2", START), ("r2", compacted(5, "about one")), ("r2", START), ("r2", says("second")),
        ("r3", asks("three")), ("r3", START), ("r3", compacted(10, None)), ("r3", START), ("r3", compacted(10, None)),
    )  # fmt: skip
    kept = (Text(text=SUMMARY_NOTE.format("about one")), Text(text=LEFT_OUT_NOTE), Text(text="three"))
    assert fold(events) == (Message(role="user", content=kept),)


def test_a_long_turn_keeps_its_message_and_says_how_often_it_was_answered() -> None:
    step = [("r1", START), ("r1", AgentToolUse(name="read", input={}))]
    events = log(
        ("r1", asks("do it")), *step, ("r1", result("e3", "a")), *step, ("r1", result("e6", "b")), *step,
        ("r1", result("e9", "c")), ("r1", START), ("r1", compacted(9, "did a and b")),
    )  # fmt: skip
    first, use, found = fold(events)
    assert first.content == (
        Text(text=SUMMARY_NOTE.format("did a and b")), Text(text=ASKED_NOTE.format(2)), Text(text="do it"),
    )  # fmt: skip
    assert use.content == (ToolUse(id="e9", name="read", input={}),)
    assert found.content == (ToolResult(tool_use_id="e9", content="c"),)


def test_results_are_shortened_from_a_compaction_on() -> None:
    use = AgentToolUse(name="read", input={})
    events = log(("r1", asks("x")), ("r1", START), ("r1", use), ("r1", result("e3", "a" * 900 + "z" * 100)), ("r1", START))
    (*_, whole) = fold(events)
    (*_, short) = fold([*events, *log(("r1", compacted(0, None, 90)))])
    assert isinstance(whole.content[0], ToolResult)
    assert isinstance(short.content[0], ToolResult)
    assert (len(whole.content[0].content), short.content[0].content[:60], short.content[0].content[-30:]) == (
        1000, "a" * 60, "z" * 30,
    )  # fmt: skip
    assert "910 of 1,000 characters left out" in short.content[0].content


def test_what_a_call_itself_measured_counts_and_a_summarys_usage_does_not() -> None:
    transcript = Transcript()
    summary = end(9).model_copy(update={"purpose": "compaction"})
    for event in log(
        ("r1", asks("x" * 400)), ("r1", START), ("r1", AgentToolUse(name="read", input={})), ("r1", end(1000)),
        ("r1", result("e3", "y" * 40)), ("r1", summary),
    ):  # fmt: skip
        transcript.take(event)
    # 1,000 as measured, and the result, which is longer by as much as the model counted more than we do.
    assert transcript.tokens.of_request(overhead=0) == 1000 + 10 * 4
    assert transcript.tokens.of_request(overhead=2000) == 1000 + 10


def test_images_and_documents_keep_their_place_among_the_texts() -> None:
    image, document = (
        ImageContent(source=FileSource(file_id="file_1")),
        DocumentContent(source=PlainTextSource(data="long"), title="T"),
    )
    one, two = TextContent(text="a"), TextContent(text="b")
    (message,) = fold(log(("r1", UserMessage(content=(one, two, image, document, one))), ("r1", START)))
    assert [type(block).__name__ for block in message.content] == ["Text", "Image", "Document", "Text"]
    assert message.content[:2] == (Text(text="ab"), Image(source=FileSource(file_id="file_1")))
    (alone,) = fold(log(("r1", UserMessage(content=(image,))), ("r1", START)))
    assert alone.content == (Image(source=FileSource(file_id="file_1")),)
    assert plain((one, image, document)) == "a[image][document: T]"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.integers(200, 5000))
def test_what_is_to_be_summarised_fits(texts: list[str], chars: int) -> None:
    messages = [Message(role=("user", "assistant")[at % 2], content=(Text(text=text * 50),)) for at, text in enumerate(texts)]
    assert len(rendered(messages, chars)) <= chars + 120


def test_a_system_message_behind_a_result_does_not_take_the_place_of_the_question() -> None:
    use = AgentToolUse(name="read", input={})
    events = log(
        ("r", asks("the question")),
        ("r", START),
        ("r", use),
        ("r", result("e3", "x" * 100)),
        ("r", tells("told")),
        ("r", START),
        ("r", use),
        ("r", result("e7", "y")),
        ("r", compacted(7)),
        ("r", START),
    )
    texts = [block.text for block in fold(events)[0].content if isinstance(block, Text)]
    assert texts == [SUMMARY_NOTE.format("S"), ASKED_NOTE.format(1), "the question"]
