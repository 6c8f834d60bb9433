"""One contract, every vendor's real package, against real HTTP servers: aimock for what works, `faulty` for what does not."""

import asyncio
from collections.abc import Callable

import pytest

from domain.completions import (
    Completion,
    CompletionRequest,
    Delta,
    Document,
    Image,
    Message,
    Provider,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from domain.errors import (
    ContextExceeded,
    ProviderAuth,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStalled,
    ProviderTruncated,
    ProviderUnavailable,
)
from domain.payload import Base64Source, PlainTextSource, UrlSource
from tests.providers.conftest import KEY, Vendor, answer
from tests.providers.faulty import WHOLE, FaultyServer

Connect = Callable[..., Provider]

WEATHER = ToolSpec(
    name="weather",
    description="The weather in a city.",
    input_schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


async def test_text_arrives_in_pieces_with_usage(vendor: Vendor, connect: Connect, aimock: str) -> None:
    deltas, completion = await answer(connect(aimock), vendor.ask("greet me"))

    assert len(deltas) > 3
    assert completion.content == (Text(text="Good day to you, whoever you are."),)
    assert completion.stop_reason == "end_turn"
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (11, 9)
    assert not completion.usage.estimated
    assert completion.model == vendor.model


async def test_reasoning_comes_before_text_as_a_block_of_its_own(vendor: Vendor, connect: Connect, aimock: str) -> None:
    deltas, completion = await answer(connect(aimock), vendor.ask("think first"))

    thinking, text = completion.content
    assert isinstance(thinking, Thinking)
    assert thinking.text == "Six times nine, or so it says."
    assert text == Text(text="Forty-two.")
    assert [d.kind for d in deltas] == sorted((d.kind for d in deltas), reverse=True)


async def test_parallel_tool_uses_and_their_results_go_round(vendor: Vendor, connect: Connect, aimock: str) -> None:
    provider = connect(aimock)
    question = Message(role="user", content=(Text(text="Tell me the weather."),))
    request = CompletionRequest(model=vendor.model, system="Be brief.", messages=(question,), tools=(WEATHER,))

    _, asked = await answer(provider, request)

    assert asked.stop_reason == "tool_use"
    assert asked.content == (
        Text(text="Let me look."),
        ToolUse(id="call_oslo", name="weather", input={"city": "Oslo", "days": 2}),
        ToolUse(id="call_rome", name="weather", input={"city": "Rome"}),
    )

    results = Message(
        role="user",
        content=(
            ToolResult(tool_use_id="call_oslo", content="no such city", is_error=True),
            ToolResult(tool_use_id="call_rome", content="sun"),
        ),
    )
    messages = (question, Message(role="assistant", content=asked.content), results)
    _, told = await answer(provider, request.model_copy(update={"messages": messages}))

    assert told.content == (Text(text="Snow in Oslo, sun in Rome."),)
    assert told.stop_reason == "end_turn"


async def test_the_whole_conversation_is_sent(vendor: Vendor, connect: Connect, aimock: str) -> None:
    _, completion = await answer(connect(aimock), vendor.ask("greet me", "Good day.", "what did I say"))

    assert completion.content == (Text(text="You said: greet me."),)


async def test_images_and_documents_go_in_the_vendors_own_words(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    content = (
        Text(text="Compare"),
        Image(source=Base64Source(media_type="image/png", data="aGk=")),
        Image(source=UrlSource(url="https://example.com/x.png")),
        Document(source=Base64Source(media_type="application/pdf", data="cGRm"), title="a.pdf"),
        Document(source=PlainTextSource(data="words"), title="Note"),
    )
    request = CompletionRequest(model=vendor.model, messages=(Message(role="user", content=content),))

    await answer(connect(f"{faulty.url}/well"), request)

    sent = faulty.bodies[0]["messages"]
    assert isinstance(sent, list)
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "cGRm"}
    claude = [
        {"type": "text", "text": "Compare"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}},
        {"type": "document", "source": pdf, "title": "a.pdf"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}, "title": "Note"},
    ]
    openai = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"}},
        {"type": "text", "text": "[document: Note]\nwords\n[end of the document]"},
    ]
    assert sent == [{"role": "user", "content": claude if vendor.name == "anthropic" else openai}]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, "invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000"),
        (400, "invalid_request_error", "This model's maximum context length is 4096 tokens. However, you requested 5000."),
        (413, "request_too_large", "Request exceeds the maximum size"),
    ],
)
async def test_a_request_that_is_too_long_is_told_from_a_bad_one(
    vendor: Vendor, connect: Connect, faulty: FaultyServer, status: int, kind: str, message: str
) -> None:
    with pytest.raises(ProviderError) as caught:
        await answer(connect(faulty.refuse(status, kind, message)), vendor.ask("hi"))

    assert caught.type is ContextExceeded
    assert not caught.value.retryable


async def test_the_output_limit_is_a_stop_reason(vendor: Vendor, connect: Connect, aimock: str) -> None:
    _, completion = await answer(connect(aimock), vendor.ask("go on for long"))

    assert completion.stop_reason == "max_tokens"


@pytest.mark.parametrize(
    ("scenario", "error", "pause"),
    [
        ("truncated", ProviderTruncated, None),
        ("disconnect", ProviderTruncated, None),
        ("malformed", ProviderUnavailable, None),
        ("notutf8", ProviderUnavailable, None),
        ("wrong-shape", ProviderUnavailable, None),
        ("no-object", ProviderUnavailable, None),
        ("unstopped", ProviderTruncated, None),
        ("half-arguments", ProviderTruncated, None),
        ("empty", ProviderTruncated, None),
        ("gzip-cut", ProviderTruncated, None),
        ("gzip-bad", ProviderTruncated, None),
        ("page", ProviderUnavailable, None),
        ("json", ProviderUnavailable, None),
        ("error-event", ProviderUnavailable, None),
        ("hangup", ProviderUnavailable, None),
        ("400", ProviderRejected, None),
        ("401", ProviderAuth, None),
        ("403", ProviderAuth, None),
        ("404", ProviderRejected, None),
        ("408", ProviderUnavailable, None),
        ("409", ProviderUnavailable, None),
        ("429", ProviderRateLimited, 7),
        ("429-ms", ProviderRateLimited, 1.5),
        ("429-nonsense", ProviderRateLimited, None),
        ("429-day", ProviderRateLimited, 3600),
        ("429-date", ProviderRateLimited, 3600),
        ("429-absurd", ProviderRateLimited, 3600),
        ("500", ProviderUnavailable, None),
        ("503", ProviderUnavailable, 3),
        ("529", ProviderUnavailable, None),
    ],
)
async def test_a_fault_has_its_posture(
    vendor: Vendor,
    connect: Connect,
    faulty: FaultyServer,
    scenario: str,
    error: type[ProviderError],
    pause: float | None,
) -> None:
    with pytest.raises(ProviderError) as caught:
        await answer(connect(f"{faulty.url}/{scenario}"), vendor.ask("hi"))

    assert caught.type is error
    assert caught.value.retry_after_seconds == pause
    assert len(faulty.bodies) == 1, "the package must not retry by itself"
    # Temporal keeps the message and the causes; the server quoted the key in its error.
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_key_is_hidden_as_it_was_sent(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    with pytest.raises(ProviderAuth, match=r"no good: \*\*\*") as caught:
        await answer(connect(f"{faulty.url}/403", key=f" {KEY}\n"), vendor.ask("hi"))

    assert KEY not in caught.value.message


async def test_a_date_in_retry_after_is_understood(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    with pytest.raises(ProviderRateLimited) as caught:
        await answer(connect(f"{faulty.url}/429-soon"), vendor.ask("hi"))

    assert caught.value.retry_after_seconds is not None
    assert 0.5 < caught.value.retry_after_seconds <= 2


async def test_what_came_before_a_fault_was_streamed(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    seen: list[Delta | Completion] = []
    with pytest.raises(ProviderTruncated):
        async for item in connect(f"{faulty.url}/truncated").stream(vendor.ask("hi")):
            seen.append(item)

    assert seen == [Delta(index=0, kind="text", text="Half an")]


@pytest.mark.parametrize("scenario", ["well", "bad-usage", "lingering", "broken-late"])
async def test_what_comes_after_the_stop_reason_spoils_nothing(
    vendor: Vendor, connect: Connect, faulty: FaultyServer, scenario: str
) -> None:
    _, completion = await answer(connect(f"{faulty.url}/{scenario}", idle=0.2), vendor.ask("hi"))

    assert completion.content == (Text(text=WHOLE),)
    assert completion.usage.output_tokens > 0


@pytest.mark.parametrize("scenario", ["stall", "silent", "headers"])
async def test_silence_is_a_stall(vendor: Vendor, connect: Connect, faulty: FaultyServer, scenario: str) -> None:
    with pytest.raises(ProviderStalled, match="silent"):
        await answer(connect(f"{faulty.url}/{scenario}", idle=0.2), vendor.ask("hi"))

    async with asyncio.timeout(1):
        await faulty.closed.wait()


@pytest.mark.parametrize("scenario", ["drip", "silent"])
async def test_a_call_has_a_total_time(vendor: Vendor, connect: Connect, faulty: FaultyServer, scenario: str) -> None:
    with pytest.raises(ProviderStalled):
        await answer(connect(f"{faulty.url}/{scenario}", total=0.3), vendor.ask("hi"))

    async with asyncio.timeout(1):
        await faulty.closed.wait()


async def test_the_total_time_never_interrupts_the_reader(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    read = 0
    with pytest.raises(ProviderStalled):
        async for _ in connect(f"{faulty.url}/drip", total=0.6).stream(vendor.ask("hi")):
            await asyncio.sleep(0.8)
            read += 1

    assert read == 1


@pytest.mark.parametrize("scenario", ["stall", "drip", "silent"])
async def test_cancelling_closes_the_connection(vendor: Vendor, connect: Connect, faulty: FaultyServer, scenario: str) -> None:
    task = asyncio.create_task(answer(connect(f"{faulty.url}/{scenario}"), vendor.ask("hi")))
    async with asyncio.timeout(5):
        await faulty.answering.wait()

    task.cancel()

    async with asyncio.timeout(1):
        await faulty.closed.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_the_iterator_closes_the_connection(vendor: Vendor, connect: Connect, faulty: FaultyServer) -> None:
    stream = connect(f"{faulty.url}/drip").stream(vendor.ask("hi"))
    await anext(stream)

    await stream.aclose()

    async with asyncio.timeout(1):
        await faulty.closed.wait()


@pytest.mark.parametrize("key", [None, "", "clé", "two\nlines"])
async def test_without_a_key_the_message_names_the_setting(vendor: Vendor, connect: Connect, key: str | None) -> None:
    provider = connect("http://127.0.0.1:1", key=key)

    with pytest.raises(ProviderAuth, match=f"Set {vendor.name.upper()}_API_KEY") as caught:
        await answer(provider, vendor.ask("hi"))
    with pytest.raises(ProviderAuth):
        await provider.models()

    assert not key or key not in caught.value.message


async def test_nobody_there_is_worth_another_try(vendor: Vendor, connect: Connect, unused_tcp_port: int) -> None:
    provider = connect(f"http://127.0.0.1:{unused_tcp_port}")

    with pytest.raises(ProviderUnavailable, match=f"127.0.0.1:{unused_tcp_port}"):
        await answer(provider, vendor.ask("hi"))
    with pytest.raises(ProviderUnavailable):
        await provider.models()


async def test_an_option_cannot_replace_what_the_run_says(vendor: Vendor, connect: Connect) -> None:
    request = vendor.ask("hi").model_copy(update={"options": {"max_tokens": 9, "messages": []}})

    with pytest.raises(ProviderRejected, match="max_tokens, messages"):
        await answer(connect("http://127.0.0.1:1"), request)
