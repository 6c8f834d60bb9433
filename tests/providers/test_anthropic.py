"""What only Claude does: thinking that is signed, prompt caching, refusals, paused turns."""

from collections.abc import AsyncIterator

import pytest
from pydantic import JsonValue

from domain.completions import (
    Completion,
    CompletionRequest,
    Delta,
    Image,
    Message,
    ModelInfo,
    StopReason,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from domain.errors import ProviderAuth, ProviderRejected, ProviderUnavailable
from domain.payload import Base64Source
from domain.usage import Usage
from providers.anthropic import MAX_OUTPUT_TOKENS, AnthropicProvider
from providers.config import AnthropicConfig
from tests.providers.conftest import KEY, answer
from tests.providers.faulty import FaultyServer, Frame

HI = Message(role="user", content=(Text(text="hi"),))


@pytest.fixture
async def claude(faulty: FaultyServer) -> AsyncIterator["Claude"]:
    made = Claude(faulty)
    yield made
    for provider in made.providers:
        await provider.close()


class Claude:
    """Calls the provider against an answer made of `frames`."""

    def __init__(self, faulty: FaultyServer) -> None:
        self.faulty = faulty
        self.providers: list[AnthropicProvider] = []

    def provider(self, base: str) -> AnthropicProvider:
        self.providers.append(AnthropicProvider(AnthropicConfig(base_url=base), KEY))
        return self.providers[-1]

    async def answers(self, *frames: Frame, request: CompletionRequest | None = None) -> tuple[list[Delta], Completion]:
        provider = self.provider(self.faulty.play(*frames))
        return await answer(provider, request or CompletionRequest(model="claude-sonnet-5-5", messages=(HI,)))

    async def sent(self, request: CompletionRequest) -> dict[str, JsonValue]:
        """The body of the call that the request becomes."""
        await self.answers(start(), stop(), request=request)
        return self.faulty.bodies[-1]


def start(**usage: JsonValue) -> Frame:
    return {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "claude-sonnet-5-5-20260901",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1, **usage},
        },
    }


def stop(reason: str = "end_turn", **usage: JsonValue) -> Frame:
    delta: Frame = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2, **usage}}


def begin(index: int, **block: JsonValue) -> Frame:
    return {"type": "content_block_start", "index": index, "content_block": block}


def piece(index: int, **delta: JsonValue) -> Frame:
    return {"type": "content_block_delta", "index": index, "delta": delta}


async def test_thinking_keeps_its_proof_and_goes_back_with_it(claude: Claude) -> None:
    deltas, completion = await claude.answers(
        start(),
        begin(0, type="thinking", thinking="", signature=""),
        piece(0, type="thinking_delta", thinking="Let "),
        piece(0, type="thinking_delta", thinking="me."),
        piece(0, type="signature_delta", signature="c2ln"),
        begin(1, type="redacted_thinking", data="c2VjcmV0"),
        begin(2, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        begin(3, type="text", text=""),
        piece(3, type="text_delta", text="Yes."),
        stop(),
    )

    thoughts = (Thinking(text="Let me.", signature="c2ln"), Thinking(text="", redacted="c2VjcmV0"))
    assert completion.content == (*thoughts, Text(text="Yes."))
    assert deltas[-1].index == 2, "our index, not the vendor's: a block was left out"

    cut_off = Thinking(text="no signature")
    history = (HI, Message(role="assistant", content=(cut_off, *completion.content)), HI)
    body = await claude.sent(CompletionRequest(model="claude-sonnet-5-5", messages=history))

    messages = body["messages"]
    assert isinstance(messages, list)
    assert messages[1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Let me.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "text", "text": "Yes."},
        ],
    }


async def test_cache_tokens_are_counted_apart_and_the_last_figures_hold(claude: Claude) -> None:
    _, completion = await claude.answers(
        start(input_tokens=3, cache_read_input_tokens=1000, cache_creation_input_tokens=20, output_tokens=1),
        stop(output_tokens=50, input_tokens=4, cache_read_input_tokens=None),
    )

    assert completion.usage == Usage(
        input_tokens=4, output_tokens=50, cache_read_input_tokens=1000, cache_creation_input_tokens=20
    )
    assert completion.model == "claude-sonnet-5-5-20260901"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("refusal", "refusal"),
        ("pause_turn", "continue"),
        ("stop_sequence", "end_turn"),
        ("model_context_window_exceeded", "max_tokens"),
        ("something_new", "end_turn"),
    ],
)
async def test_stop_reasons(claude: Claude, said: str, reason: StopReason) -> None:
    _, completion = await claude.answers(start(), stop(said))

    assert completion.stop_reason == reason


async def test_arguments_that_are_no_json_object_are_kept_as_written(claude: Claude) -> None:
    _, completion = await claude.answers(
        start(),
        begin(0, type="tool_use", id="toolu_1", name="read", input={}),
        piece(0, type="input_json_delta", partial_json=""),
        begin(1, type="tool_use", id="toolu_2", name="read", input={}),
        piece(1, type="input_json_delta", partial_json='{"path": "a'),
        begin(2, type="tool_use", id="toolu_3", name="read", input={"path": "b"}),
        begin(3, type="tool_use", id="toolu_4", name="read", input={}),
        piece(3, type="input_json_delta", partial_json='{"path": NaN}'),
        stop("tool_use"),
    )

    assert completion.content == (
        ToolUse(id="toolu_1", name="read", input={}),
        ToolUse(id="toolu_2", name="read", input={}, malformed='{"path": "a'),
        ToolUse(id="toolu_3", name="read", input={"path": "b"}),
        ToolUse(id="toolu_4", name="read", input={}, malformed='{"path": NaN}'),
    )


async def test_the_request_in_the_vendors_words(claude: Claude) -> None:
    spec = ToolSpec(name="read", description="Read a file.", input_schema={"type": "object"})
    request = CompletionRequest(
        model="claude-sonnet-5-5",
        system="Be brief.",
        tools=(spec,),
        messages=(
            HI,
            Message(role="assistant", content=(Text(text=""), ToolUse(id="functions.read:0", name="read", input={}))),
            Message(
                role="user",
                content=(
                    Text(text="and this"),
                    Image(source=Base64Source(media_type="image/png", data="aGk=")),
                    ToolResult(tool_use_id="functions.read:0", content="no file", is_error=True),
                ),
            ),
        ),
        options={"effort": "high", "thinking": "adaptive", "temperature": 0.5},
    )

    body = await claude.sent(request)

    assert body == {
        "model": "claude-sonnet-5-5",
        "system": "Be brief.",
        "stream": True,
        "max_tokens": MAX_OUTPUT_TOKENS,
        "cache_control": {"type": "ephemeral"},
        "output_config": {"effort": "high"},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "temperature": 0.5,
        "tools": [{"name": "read", "description": "Read a file.", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "functions_read_0", "name": "read", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "functions_read_0",
                        "content": "no file",
                        "is_error": True,
                    },
                    {"type": "text", "text": "and this"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                ],
            },
        ],
    }
    assert claude.faulty.headers[-1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        (True, {"type": "adaptive", "display": "summarized"}),
        (False, {"type": "disabled"}),
        ("disabled", {"type": "disabled"}),
        ({"type": "enabled", "budget_tokens": 2048}, {"type": "enabled", "budget_tokens": 2048}),
    ],
)
async def test_thinking_options(claude: Claude, option: JsonValue, sent: JsonValue) -> None:
    request = CompletionRequest(model="claude-sonnet-5-5", messages=(HI,), options={"thinking": option}, max_output_tokens=4096)

    body = await claude.sent(request)

    assert body["thinking"] == sent
    assert body["max_tokens"] == 4096


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", ProviderUnavailable),
        ("api_error", ProviderUnavailable),
        ("invalid_request_error", ProviderRejected),
        ("authentication_error", ProviderAuth),
    ],
)
async def test_an_error_in_mid_stream_has_the_posture_of_its_type(claude: Claude, kind: str, error: type) -> None:
    frame: Frame = {"type": "error", "error": {"type": kind, "message": "so it goes"}}

    with pytest.raises(error):
        await claude.answers(start(), frame)


async def test_the_models_are_the_vendors_and_the_operators(aimock: str) -> None:
    provider = AnthropicProvider(AnthropicConfig(base_url=aimock, models=("claude-house", "gpt-4")), KEY)
    models = await provider.models()
    await provider.close()

    names = [m.name for m in models]
    assert "claude-3-5-sonnet-20241022" in names
    assert models[-1] == ModelInfo(name="claude-house")
    assert names.count("gpt-4") == 1
