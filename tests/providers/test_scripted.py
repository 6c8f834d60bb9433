import asyncio
import json
import time

import pytest
from pydantic import JsonValue

from domain.completions import (
    Block,
    Completion,
    CompletionRequest,
    Delta,
    Message,
    Provider,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from domain.errors import (
    ProviderAuth,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStalled,
    ProviderTruncated,
    ProviderUnavailable,
)
from domain.usage import Usage
from providers.config import ScriptedConfig
from providers.scripted import ScriptedProvider

TOOLS = tuple(ToolSpec(name=n, description=n, input_schema={"type": "object"}) for n in ("read", "write", "list"))


def user(*content: Block | str) -> Message:
    return Message(role="user", content=tuple(Text(text=c) if isinstance(c, str) else c for c in content))


def said(*content: Block | str) -> Message:
    return Message(role="assistant", content=tuple(Text(text=c) if isinstance(c, str) else c for c in content))


def script(*steps: dict[str, JsonValue]) -> str:
    return json.dumps({"script": steps})


def request(*messages: Message | str, model: str = "script", attempt: int = 1, **members: object) -> CompletionRequest:
    turns = [user(m) if isinstance(m, str) else m for m in messages]
    return CompletionRequest.model_validate({"model": model, "messages": turns, "attempt": attempt, **members})


def scripted(**members: float) -> Provider:
    return ScriptedProvider(ScriptedConfig.model_validate(members))


async def play(asked: CompletionRequest, provider: Provider | None = None) -> tuple[list[Delta], Completion]:
    """All deltas and the completion, after checking that the former add up to the latter."""
    items = [item async for item in (provider or scripted()).stream(asked)]
    last = items.pop()
    assert isinstance(last, Completion)
    deltas = [item for item in items if isinstance(item, Delta)]
    for index, block in enumerate(last.content):
        pieces = [d for d in deltas if d.index == index]
        assert "".join(d.text for d in pieces) == ("" if isinstance(block, ToolUse) else block.text)
        assert {d.kind for d in pieces} <= {block.type}
    assert deltas == sorted(deltas, key=lambda d: d.index)
    return deltas, last


async def text_of(asked: CompletionRequest) -> str:
    return "".join(b.text for b in (await play(asked))[1].content if isinstance(b, Text))


async def broken(asked: CompletionRequest, provider: Provider | None = None) -> tuple[str, ProviderError]:
    """What came before the error, and the error."""
    came = ""
    with pytest.raises(ProviderError) as caught:
        async for item in (provider or scripted()).stream(asked):
            assert isinstance(item, Delta)
            came += item.text
    return came, caught.value


async def test_a_step_streams_reasoning_text_and_tool_calls() -> None:
    step = script(
        {"thinking": "let me see", "text": "I read it.", "tools": [{"name": "read", "input": {"path": "a"}}], "chunk_chars": 4}
    )
    deltas, completion = await play(request(step))

    assert [d.text for d in deltas] == ["let ", "me s", "ee", "I re", "ad i", "t."]
    thinking, text, tool = completion.content
    assert (thinking, text) == (Thinking(text="let me see"), Text(text="I read it."))
    assert isinstance(tool, ToolUse)
    assert (tool.name, tool.input, completion.stop_reason) == ("read", {"path": "a"}, "tool_use")
    assert completion.usage == Usage(
        input_tokens=(len(step) + 3) // 4, output_tokens=(len("let me seeI read it.read") + 13 + 3) // 4
    )


async def test_the_step_is_the_number_of_answers_since_the_script_in_any_process_and_attempt() -> None:
    source = script({"tools": [{"name": "read"}, {"name": "read"}]}, {"tools": [{"name": "read"}]}, {"text": "done"})
    messages = ["earlier", said("answered"), user(source)]
    ids: list[str] = []
    for step in range(3):
        _, completion = await play(request(*messages))
        assert (await play(request(*messages, attempt=2)))[1] == completion
        uses = [b for b in completion.content if isinstance(b, ToolUse)]
        assert len(uses) == (2, 1, 0)[step]
        ids += [u.id for u in uses]
        messages += [
            said(*completion.content),
            user(*(ToolResult(tool_use_id=u.id, content="same") for u in uses), *([] if uses else ["x"])),
        ]
    assert len(set(ids)) == 3
    assert await text_of(request(*messages)) == "(end of script)"


async def test_a_note_after_an_interruption_goes_on_and_a_new_script_starts_anew() -> None:
    source = script({"text": "one"}, {"text": "two"})
    interrupted = [user("{} is no script", source), said("on"), user("[continue where you were interrupted]")]

    assert await text_of(request(*interrupted)) == "two"
    # Merged into the message that carries tool results and the note: roles alternate.
    merged = user(ToolResult(tool_use_id="t", content="r"), "[a note]", script({"text": "new"}))
    assert await text_of(request(source, said("one"), merged)) == "new"
    assert await text_of(request(script({"text": "any"}), model="echo")) == "any"


async def test_words_are_deterministic_and_numbered() -> None:
    words = (await text_of(request(script({"text": "Go:", "words": 200})))).split()

    assert words[0] == "Go:"
    assert len(words) == 201
    assert words[10::10] == [str(n) for n in range(10, 201, 10)]


async def test_usage_stop_reason_and_the_output_limit() -> None:
    claimed = script({"text": "x" * 100, "usage": {"output_tokens": 7, "cache_read_input_tokens": 5}, "stop_reason": "refusal"})
    _, completion = await play(request(claimed))
    assert (completion.usage.output_tokens, completion.usage.cache_read_input_tokens) == (7, 5)
    assert completion.usage.input_tokens > 0
    assert completion.stop_reason == "refusal"

    long = script({"thinking": "t" * 6, "text": "x" * 100, "tools": [{"name": "read"}]})
    _, completion = await play(request(long, max_output_tokens=2))
    assert completion.content == (Thinking(text="t" * 6), Text(text="xx"))
    assert (completion.stop_reason, completion.usage.output_tokens) == ("max_tokens", 2)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("unavailable", ProviderUnavailable),
        ("rate_limited", ProviderRateLimited),
        ("auth", ProviderAuth),
        ("rejected", ProviderRejected),
    ],
)
async def test_failures_by_attempt(code: str, error: type[ProviderError]) -> None:
    twice = script({"text": "up", "fail": {"code": code, "message": "down", "retry_after_seconds": 1.5, "times": 2}})
    for attempt in (1, 2):
        came, raised = await broken(request(twice, attempt=attempt))
        assert (came, type(raised), raised.message, raised.retry_after_seconds) == ("", error, "down", 1.5)
    assert await text_of(request(twice, attempt=3)) == "up"
    assert isinstance((await broken(request(script({"fail": {"code": code}}), attempt=99)))[1], error)


async def test_truncated_and_stalled_streams_send_a_part() -> None:
    cut = script({"text": "a" * 48, "truncate_attempts": 1})
    came, raised = await broken(request(cut))
    assert (came, type(raised)) == ("a" * 24, ProviderTruncated)
    assert await text_of(request(cut, attempt=2)) == "a" * 48

    came, raised = await broken(request(script({"text": "b" * 48, "stall_attempts": 1})), scripted(idle_timeout_seconds=0.1))
    assert (came, type(raised)) == ("b" * 24, ProviderStalled)


async def test_pace_and_time_limits() -> None:
    began = time.monotonic()
    await play(request(script({"text": "a" * 60, "first_token_ms": 200, "delay_ms": 50})))
    assert 0.4 <= time.monotonic() - began < 2
    began = time.monotonic()
    deltas, _ = await play(request(script({"words": 20_000, "chunk_chars": 10})))
    assert len(deltas) > 10_000
    assert time.monotonic() - began < 3, "pauses between them would take ten times as long"

    late = request(script({"text": "a" * 600, "delay_ms": 20}))
    assert isinstance((await broken(late, scripted(timeout_seconds=0.15)))[1], ProviderStalled)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("just text", "wants a message that is a script"),
        ('{"script": [}', "no valid JSON"),
        ('{"script": [{"tolls": []}]}', "script.0.tolls"),
        ('{"script": [{"fail": {"code": "boom"}}]}', "script.0.fail.code"),
        ('{"a": 1, "script": []}', "a: Extra inputs"),
        ('{"script": [{"tools": [{"name": "t", "input": {"x": NaN}}]}]}', "NaN is not a number"),
        ('{"script": [{"text": "\\ud800"}]}', "Invalid JSON"),
        ('{"script": ' + "[" * 100_000, "script"),
    ],
)
async def test_a_bad_script_is_rejected_with_what_is_wrong(source: str, complaint: str) -> None:
    _, raised = await broken(
        request(script({"text": "an older one"}), said("x"), source) if source[0] == "{" else request(source)
    )

    assert isinstance(raised, ProviderRejected)
    assert complaint in raised.message


async def test_echo_repeats_the_last_text_and_unknown_models_are_rejected() -> None:
    repeated = await text_of(request("first", said("first"), "and second\nline", model="echo"))
    assert repeated == "and second\nline"
    began = time.monotonic()
    assert len(await text_of(request("x" * 500_000, model="echo"))) == 500_000
    assert time.monotonic() - began < 5

    _, raised = await broken(request("hi", model="gpt"))
    assert isinstance(raised, ProviderRejected)
    assert "demo, echo, script" in raised.message
    assert {m.name for m in await scripted().models()} == {"demo", "echo", "script"}


async def test_the_demo_tells_its_story_with_tools_and_survives_a_stop() -> None:
    question = user("Why is\nthe sky blue?")
    results = user(ToolResult(tool_use_id="t", content="ok"))
    wrote, read = said("x", ToolUse(id="t", name="write", input={})), said(ToolUse(id="t", name="read", input={}))
    told = ([question], [question, wrote, results], [question, wrote, results, read, results])

    async def timed(messages: list[Message]) -> tuple[float, Completion]:
        began = time.monotonic()
        _, completion = await play(request(*messages, model="demo", tools=TOOLS))
        return time.monotonic() - began, completion

    async def first(*messages: Message) -> str:
        stream = scripted().stream(request(*messages, model="demo", tools=TOOLS))
        async for item in stream:
            return item.text if isinstance(item, Delta) else ""
        return ""

    played = await asyncio.gather(*(timed(messages) for messages in told))
    calls = [[b.name for b in completion.content if isinstance(b, ToolUse)] for _, completion in played]
    texts = [next(b.text for b in completion.content if isinstance(b, Text)) for _, completion in played]
    assert calls == [["write"], ["read"], []]
    assert isinstance(played[0][1].content[0], Thinking)
    assert texts[0].startswith("I am a scripted demo, not a model: ")
    assert "Why is the sky blue?" in texts[-1]
    assert 60 <= len(texts[-1].split()) <= 100
    assert 6 <= sum(seconds for seconds, _ in played) <= 12

    # Stopped in the middle, a step is played again: the note that follows is no new question. Also at a sentence's end.
    note = user("[you were interrupted]")
    stopped = [
        [*told[0], said(texts[0][:30])],
        [*told[1], said("The file is written.")],
        [*told[2], said(Thinking(text="(Scr"))],
    ]
    begun = await asyncio.gather(*(first(*messages, note) for messages in stopped))
    assert begun == ["(Scr", "The ", "(Scr"]
    later = await text_of(request(*told[2], said(texts[2]), "And the sea? " + "x" * 200, model="demo", tools=TOOLS))
    assert later.startswith("I am a scripted demo")
    assert "And the sea? x" in later
    assert len(later) < len(texts[2]) / 2


async def test_the_demo_without_tools_answers_in_one_step() -> None:
    _, completion = await play(request("hello there", model="demo", tools=TOOLS[:1], max_output_tokens=120))

    answer = completion.content[-1]
    assert isinstance(answer, Text)
    assert answer.text.startswith("I am a scripted demo, not a model: ")
    assert "hello there" in answer.text
