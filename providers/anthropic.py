"""Claude, over the Messages API with the `anthropic` package (2.11, API version 2026-10-21), always streamed.

Options of an agent's model: `effort` (`low` … `max`), `thinking` (`adaptive`, `disabled`, `true`, `false`, or the API's own
object); every other one goes into the request body as it is, `temperature` too: the package has no parameter for it.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import anthropic
import httpx2
from anthropic.types import (
    ContentBlockParam,
    DocumentBlockParam,
    ImageBlockParam,
    MessageDeltaUsage,
    MessageParam,
    RawContentBlockDelta,
    RawMessageStreamEvent,
    ToolParam,
)
from anthropic.types import Usage as VendorUsage
from anthropic.types.raw_content_block_start_event import ContentBlock
from pydantic import JsonValue

from domain.completions import (
    AnswerBlock,
    Block,
    Completion,
    CompletionRequest,
    Delta,
    Document,
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
from domain.errors import ProviderError, ProviderRejected
from domain.usage import Usage
from providers import failures
from providers.arguments import tool_use
from providers.config import AnthropicConfig

MAX_OUTPUT_TOKENS = 32_000
"""Where neither agent nor run sets a limit (the API requires one): no current model allows less."""

_OURS = frozenset({"model", "messages", "system", "tools", "max_tokens", "stream"})
_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")

_STOP_REASONS: dict[str, StopReason] = {
    "end_turn": "end_turn",
    "stop_sequence": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "pause_turn": "continue",
    "refusal": "refusal",
}

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
"""An error in mid-stream has the type only: the HTTP status was 200 by then. (docs: API errors, "HTTP errors")"""


class AnthropicProvider:
    """The Messages API. Keeps connections between calls, nothing else."""

    kind = "anthropic"

    def __init__(self, config: AnthropicConfig, api_key: str | None) -> None:
        self._config = config
        self._key = api_key
        self._advice = f"Set {config.api_key_env} to a valid key and restart."
        self._place = failures.place_of(config.base_url)
        self._client: anthropic.AsyncAnthropic | None = None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        """As in `domain.completions.Provider`; the prompt is cached by the vendor up to its last block."""
        client, extra = self._connect(), _extra_body(request.options)
        deadline = asyncio.get_running_loop().time() + self._config.timeout_seconds
        answer, started, content_type = _Answer(), False, ""
        try:
            call = client.messages.create(
                model=request.model,
                messages=to_messages(request.messages),
                system=request.system or anthropic.omit,
                tools=[_tool(spec) for spec in request.tools] or anthropic.omit,
                max_tokens=request.max_output_tokens or MAX_OUTPUT_TOKENS,
                cache_control={"type": "ephemeral"},
                extra_body=extra,
                stream=True,
            )
            async with await failures.before(deadline, call) as events:
                started, content_type = True, events.response.headers.get("content-type", "")
                while (event := await failures.before(deadline, anext(events, None))) is not None:
                    with failures.reading(self._place):
                        delta = answer.add(event)
                    if delta is not None:
                        yield delta
        except (anthropic.APIError, httpx2.HTTPError, ValueError, TimeoutError) as error:
            if answer.stop_reason is None:  # else all has been said, however the connection ends
                raise self.as_provider_error(error, started) from None
        if answer.stop_reason is None:
            raise failures.truncated(self._place, content_type, answer.empty)
        with failures.reading(self._place):
            completion = answer.completion(answer.stop_reason, request.model)
        yield completion

    async def models(self) -> tuple[ModelInfo, ...]:
        client = self._connect()
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                with failures.reading(self._place):
                    listed = [
                        ModelInfo(
                            name=m.id,
                            context_tokens=failures.count(m.max_input_tokens),
                            max_output_tokens=failures.count(m.max_tokens),
                        )
                        async for m in client.models.list()
                    ]
        except (anthropic.APIError, httpx2.HTTPError, ValueError, TimeoutError) as error:
            raise self.as_provider_error(error, started=False) from None
        known = {m.name for m in listed}
        return (*listed, *(ModelInfo(name=name) for name in self._config.models if name not in known))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def as_provider_error(self, error: Exception, started: bool) -> ProviderError:
        """Whether and when to try again: the one place that knows the vendor's errors (docs: API errors)."""
        if isinstance(error, anthropic.APIStatusError):
            status = error.status_code if error.status_code >= 400 else _STATUS_OF_TYPE.get(error.type or "", 500)
            return failures.of_status(
                status,
                error.api_message,
                place=self._place,
                advice=self._advice,
                key=self._key,
                headers=error.response.headers,
            )
        # The package wraps what happens before the stream; within it the raw exception comes through.
        cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else None
        return failures.of_transport(cause or error, place=self._place, started=started)

    def _connect(self) -> anthropic.AsyncAnthropic:
        key = failures.usable_key(self._key, self._advice)
        if self._client is None:
            self._client = anthropic.AsyncAnthropic(
                api_key=key,
                base_url=self._config.base_url,
                max_retries=0,
                timeout=failures.timeouts(self._config.idle_timeout_seconds),
                open_telemetry={},  # given, so that the package does not read the environment for it
            )
        return self._client


@dataclass
class _Piece:
    """One block while it is being written."""

    kind: Literal["text", "thinking", "tool_use"]
    text: list[str] = field(default_factory=list[str])
    signature: str | None = None
    redacted: str | None = None
    id: str = ""
    name: str = ""
    given: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])

    def block(self) -> AnswerBlock:
        text = "".join(self.text)
        if self.kind == "text":
            return Text(text=text)
        if self.kind == "thinking":
            return Thinking(text=text, signature=self.signature, redacted=self.redacted)
        # Some servers send whole arguments with the start of the block and no piece of them after it.
        return tool_use(self.id, self.name, text) if text else ToolUse(id=self.id, name=self.name, input=self.given)


class _Answer:
    """What becomes of the events of one streamed message. Blocks of kinds that we do not know are left out."""

    def __init__(self) -> None:
        self.empty = True
        self.stop_reason: StopReason | None = None
        self._model: str | None = None
        self._usage = Usage()
        self._pieces: dict[int, _Piece] = {}  # by the vendor's index, in the order in which they began

    def add(self, event: RawMessageStreamEvent) -> Delta | None:
        self.empty = False
        match event.type:
            case "message_start":
                self._model = event.message.model
                self._count(event.message.usage)
            case "content_block_start":
                return self._begin(event.index, event.content_block)
            case "content_block_delta":
                return self._extend(event.index, event.delta)
            case "message_delta":
                self._count(event.usage)
                if reason := event.delta.stop_reason:
                    self.stop_reason = _STOP_REASONS.get(reason, "end_turn")
            case _:
                pass
        return None

    def completion(self, stop_reason: StopReason, requested_model: str) -> Completion:
        return Completion(
            content=tuple(piece.block() for piece in self._pieces.values()),
            stop_reason=stop_reason,
            usage=self._usage,
            model=self._model or requested_model,
        )

    def _begin(self, index: int, block: ContentBlock) -> Delta | None:
        match block.type:
            case "text":
                self._pieces[index] = _Piece("text")
                return self._write(index, block.text)
            case "thinking":
                self._pieces[index] = _Piece("thinking", signature=block.signature or None)
                return self._write(index, block.thinking)
            case "redacted_thinking":
                self._pieces[index] = _Piece("thinking", redacted=block.data)
            case "tool_use":
                given = cast(dict[str, JsonValue], block.input or {})
                self._pieces[index] = _Piece("tool_use", id=block.id, name=block.name, given=given)
            case _:
                pass
        return None

    def _extend(self, index: int, delta: RawContentBlockDelta) -> Delta | None:
        match delta.type:
            case "text_delta":
                return self._write(index, delta.text)
            case "thinking_delta":
                return self._write(index, delta.thinking)
            case "input_json_delta":
                return self._write(index, delta.partial_json)
            case "signature_delta":
                if index in self._pieces:
                    self._pieces[index].signature = delta.signature
            case _:
                pass
        return None

    def _write(self, index: int, text: str) -> Delta | None:
        piece = self._pieces.get(index)
        if piece is None or not text:
            return None
        piece.text.append(text)
        if piece.kind == "tool_use":
            return None
        return Delta(index=list(self._pieces).index(index), kind=piece.kind, text=text)

    def _count(self, usage: VendorUsage | MessageDeltaUsage) -> None:
        """Figures are cumulative: a later one replaces an earlier one, an absent one does not."""
        figures = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_input_tokens": usage.cache_read_input_tokens,
            "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        }
        self._usage = self._usage.model_copy(update={k: n for k, v in figures.items() if (n := failures.count(v)) is not None})


def to_messages(messages: Iterable[Message]) -> list[MessageParam]:
    """Our messages in the API's shape; one that is empty there is left out, as the API refuses it."""
    out: list[MessageParam] = []
    for message in messages:
        # The API wants tool results before anything else in their message.
        blocks = sorted(message.content, key=lambda b: not isinstance(b, ToolResult))
        content = [param for param in map(_block, blocks) if param is not None]
        if content:
            user = message.role == "user"
            out.append({"role": "user", "content": content} if user else {"role": "assistant", "content": content})
    return out


def _block(block: Block) -> ContentBlockParam | None:
    match block:
        case Text():
            return {"type": "text", "text": block.text} if block.text.strip() else None
        case Thinking():
            if block.redacted is not None:
                return {"type": "redacted_thinking", "data": block.redacted}
            if block.signature is None:
                return None  # another vendor's reasoning, or cut off: refused without a signature
            return {"type": "thinking", "thinking": block.text, "signature": block.signature}
        case ToolUse():
            return {"type": "tool_use", "id": _tool_id(block.id), "name": block.name, "input": {**block.input}}
        case ToolResult():
            return {
                "type": "tool_result",
                "tool_use_id": _tool_id(block.tool_use_id),
                "content": block.content,
                "is_error": block.is_error,
            }
        # Which media types it takes is for the API to say.
        case Image():
            return cast(ImageBlockParam, {"type": "image", "source": block.source.model_dump()})
        case Document():
            return cast(DocumentBlockParam, block.model_dump(exclude_none=True))


def _tool_id(value: str) -> str:
    """Other vendors' ids (`functions.read:0`) hold characters that the API refuses, when a session changes its model."""
    return _NOT_IN_IDS.sub("_", value)


def _tool(spec: ToolSpec) -> ToolParam:
    return {"name": spec.name, "description": spec.description, "input_schema": {**spec.input_schema}}


def _extra_body(options: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The agent's options as members of the request body. Raises ProviderRejected for those that are not theirs to set."""
    if taken := sorted(_OURS & options.keys()):
        raise ProviderRejected(f"These cannot be options of a model: {', '.join(taken)}.")
    body = dict(options)
    if "effort" in body:
        body["output_config"] = {"effort": body.pop("effort")}
    match body.get("thinking"):
        case True | "adaptive":
            # Without `display` the newer models send their reasoning empty.
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
        case False | "disabled":
            body["thinking"] = {"type": "disabled"}
        case _:
            pass
    return body
