"""What servers of chat completions do in their own ways."""

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
from domain.errors import ContextExceeded, ProviderError, ProviderRateLimited, ProviderRejected, ProviderUnavailable
from domain.payload import Base64Source
from domain.usage import Usage
from providers.config import OpenAICompatibleConfig
from providers.openai_compatible import OpenAICompatibleProvider
from tests.providers.conftest import answer
from tests.providers.faulty import FaultyServer, Frame

HI = Message(role="user", content=(Text(text="hi"),))
ASK = CompletionRequest(model="qwen3-8b", messages=(HI,))


class Server:
    """Calls the provider against an answer made of `frames`, without a key as for a local server."""

    def __init__(self, faulty: FaultyServer) -> None:
        self.faulty = faulty
        self.providers: list[OpenAICompatibleProvider] = []

    async def answers(self, *frames: Frame, request: CompletionRequest = ASK) -> tuple[list[Delta], Completion]:
        self.providers.append(
            OpenAICompatibleProvider(OpenAICompatibleConfig(base_url=f"{self.faulty.play(*frames)}/v1"), None)
        )
        return await answer(self.providers[-1], request)

    async def sent(self, request: CompletionRequest) -> dict[str, JsonValue]:
        await self.answers(chunk({}, "stop"), request=request)
        return self.faulty.bodies[-1]


@pytest.fixture
async def server(faulty: FaultyServer) -> AsyncIterator[Server]:
    made = Server(faulty)
    yield made
    for provider in made.providers:
        await provider.close()


def chunk(delta: dict[str, JsonValue], finish: str | None = None, **more: JsonValue) -> Frame:
    choice: dict[str, JsonValue] = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "qwen3", "choices": [choice], **more}


def call(index: int, use_id: str | None, name: str | None, arguments: str) -> dict[str, JsonValue]:
    function: dict[str, JsonValue] = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": use_id, "type": "function", "function": function}]}


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning"])
async def test_reasoning_under_either_name(server: Server, member: str) -> None:
    deltas, completion = await server.answers(
        chunk({"role": "assistant", "content": "", member: "Let "}),
        chunk({"content": None, member: "me."}),
        chunk({"content": "Yes."}),
        chunk({}, "stop"),
    )

    assert completion.content == (Thinking(text="Let me."), Text(text="Yes."))
    assert [d.kind for d in deltas] == ["thinking", "thinking", "text"]


async def test_usage_that_is_missing_is_estimated_and_says_so(server: Server) -> None:
    _, completion = await server.answers(chunk({"content": "x" * 40}), chunk({}, "stop"))

    assert completion.usage.estimated
    assert completion.usage.output_tokens == 10
    assert completion.usage.input_tokens > 0


async def test_cached_tokens_are_taken_out_of_the_input(server: Server) -> None:
    usage: JsonValue = {
        "prompt_tokens": 1000,
        "completion_tokens": 7,
        "total_tokens": 1007,
        "prompt_tokens_details": {"cached_tokens": 900},
    }
    last: Frame = {**chunk({}), "choices": [], "usage": usage}

    _, completion = await server.answers(chunk({"content": "ok"}, "stop"), last)

    assert completion.usage == Usage(input_tokens=100, output_tokens=7, cache_read_input_tokens=900)


async def test_tool_uses_are_put_together_by_index(server: Server) -> None:
    _, completion = await server.answers(
        chunk(call(0, "call_a", "read", "")),
        chunk(call(0, None, None, '{"path":')),
        chunk(call(1, "call_b", "read", '["not an object"]')),
        chunk(call(0, None, None, ' "a"}')),
        chunk({}, "stop"),
    )

    assert completion.stop_reason == "tool_use", "some servers say stop"
    assert completion.content == (
        ToolUse(id="call_a", name="read", input={"path": "a"}),
        ToolUse(id="call_b", name="read", input={}, malformed='["not an object"]'),
    )


async def test_parallel_tool_uses_that_share_an_index_stay_apart(server: Server) -> None:
    _, completion = await server.answers(
        chunk(call(0, "call_a", "read", '{"path": "a"}')),
        chunk(call(0, "call_b", "read", '{"path": "b"}')),
        chunk({}, "tool_calls"),
    )

    assert [b.input for b in completion.content if isinstance(b, ToolUse)] == [{"path": "a"}, {"path": "b"}]


async def test_a_tool_use_without_an_id_gets_one(server: Server) -> None:
    _, completion = await server.answers(chunk(call(0, None, "read", "{}")), chunk({}, "tool_calls"))

    (use,) = completion.content
    assert isinstance(use, ToolUse)
    assert use.id.startswith("call_")


@pytest.mark.parametrize(
    ("delta", "finish", "reason"),
    [
        ({"content": "So"}, "content_filter", "refusal"),
        ({"refusal": "I will not."}, "stop", "refusal"),
        ({"content": "So"}, "model_length", "max_tokens"),
        ({"content": "So"}, "tool_calls", "end_turn"),
        ({"content": "So"}, "eos", "end_turn"),
    ],
)
async def test_stop_reasons(server: Server, delta: dict[str, JsonValue], finish: str, reason: StopReason) -> None:
    _, completion = await server.answers(chunk(delta), chunk({}, finish))

    assert completion.stop_reason == reason
    assert len(completion.content) == 1


@pytest.mark.parametrize(
    ("error", "posture"),
    [
        ({"message": "busy", "code": 502}, ProviderUnavailable),
        ({"message": "slow down", "code": "429"}, ProviderRateLimited),
        ({"message": "too long", "type": "invalid_request_error", "code": None}, ProviderRejected),
        ({"message": "no idea"}, ProviderUnavailable),
        ("just text", ProviderUnavailable),
        ({"message": "Trying to keep 9999 tokens, but the model is loaded with context length of only 4096"}, ContextExceeded),
        ({"message": "too long", "code": "context_length_exceeded"}, ContextExceeded),
    ],
)
async def test_an_error_in_mid_stream(server: Server, error: JsonValue, posture: type[ProviderError]) -> None:
    with pytest.raises(posture) as caught:
        await server.answers(chunk({"content": "So"}), {"error": error})

    assert caught.type is posture


async def test_a_failure_behind_the_server_is_no_answer(server: Server) -> None:
    with pytest.raises(ProviderUnavailable):
        await server.answers(chunk({"content": "So"}), chunk({}, "error"))


async def test_the_request_in_the_vendors_words(server: Server) -> None:
    spec = ToolSpec(name="read", description="Read a file.", input_schema={"type": "object"})
    request = CompletionRequest(
        model="qwen3-8b",
        system="Be brief.",
        tools=(spec,),
        max_output_tokens=100,
        messages=(
            HI,
            Message(
                role="assistant",
                content=(
                    Thinking(text="hm", signature="another vendor's"),
                    ToolUse(id="call_a", name="read", input={"path": "a"}),
                    ToolUse(id="call_b", name="read", input={}, malformed="{"),
                ),
            ),
            Message(
                role="user",
                content=(
                    Text(text="and this"),
                    ToolResult(tool_use_id="call_a", content="A"),
                    ToolResult(tool_use_id="call_b", content="not JSON", is_error=True),
                    Image(source=Base64Source(media_type="image/png", data="aGk=")),
                ),
            ),
        ),
        options={"effort": "low", "temperature": 0.5},
    )

    body = await server.sent(request)

    assert body == {
        "model": "qwen3-8b",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 100,
        "reasoning_effort": "low",
        "temperature": 0.5,
        "tools": [
            {
                "type": "function",
                "function": {"name": "read", "description": "Read a file.", "parameters": {"type": "object"}},
            }
        ],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_a", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}},
                    {"id": "call_b", "type": "function", "function": {"name": "read", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "call_a", "content": "A"},
            {"role": "tool", "tool_call_id": "call_b", "content": "Error: not JSON"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and this"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            },
        ],
    }


async def test_the_environment_is_not_told_to_other_servers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-another-vendor")

    await server.sent(ASK)

    assert "of-another-vendor" not in str(server.faulty.headers)


async def test_the_models_are_the_servers_and_the_operators(aimock: str) -> None:
    config = OpenAICompatibleConfig(base_url=f"{aimock}/v1", models=("house", "gpt-4"))
    provider = OpenAICompatibleProvider(config, None)
    models = await provider.models()
    await provider.close()

    names = [m.name for m in models]
    assert "gpt-4o" in names
    assert models[-1] == ModelInfo(name="house")
    assert names.count("gpt-4") == 1
