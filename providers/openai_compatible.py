"""Chat completions as OpenAI, LM Studio, Ollama (`/v1`), vLLM, llama.cpp and many others serve them, always streamed.

Options of an agent's model go into the request body as they are; `effort` becomes `reasoning_effort`. Reasoning comes in
members that the `openai` package (3.52) does not know: `reasoning_content` (DeepSeek, LM Studio, llama.cpp) or `reasoning`
(Ollama, OpenRouter, vLLM). It is shown and never sent back.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import httpx2
import openai
from openai.types import CompletionUsage, Model
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionContentPartParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall
from pydantic import JsonValue

from domain.completions import (
    AnswerBlock,
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
from domain.errors import ProviderError, ProviderRejected, ProviderUnavailable
from domain.ids import new_id
from domain.payload import Base64Source, PlainTextSource, UrlSource
from domain.usage import Usage, estimate_tokens
from providers import failures
from providers.arguments import tool_use
from providers.config import OpenAICompatibleConfig

_OURS = frozenset({"model", "messages", "tools", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"})
_NO_KEY = "none"
"""The package insists on a key; servers that want none ignore it."""

_STOP_REASONS: dict[str, StopReason] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "length": "max_tokens",
    "model_length": "max_tokens",  # Mistral's
    "content_filter": "refusal",
}
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 402,
    "context_length_exceeded": 400,
}
_CONTEXT_MEMBERS = ("context_length", "max_model_len", "max_context_length")
"""OpenRouter's, vLLM's and LM Studio's words for a model's context; OpenAI's own list does not say."""


class OpenAICompatibleProvider:
    """Chat completions of one server. Keeps connections between calls, nothing else."""

    kind = "openai_compatible"

    def __init__(self, config: OpenAICompatibleConfig, api_key: str | None) -> None:
        self._config = config
        self._key = api_key
        self._place = failures.place_of(config.base_url)
        self._advice = (
            f"Set {config.api_key_env} to a valid key and restart."
            if config.api_key_env
            else "Set api_key_env of this provider to the name of the variable that holds its key."
        )
        self._client: openai.AsyncOpenAI | None = None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        """As in `domain.completions.Provider`."""
        client, extra = self._connect(), self._extra_body(request)
        deadline = asyncio.get_running_loop().time() + self._config.timeout_seconds
        answer, started, content_type = _Answer(), False, ""
        try:
            call = client.chat.completions.create(
                model=request.model,
                messages=to_messages(request.system, request.messages),
                tools=[_tool(spec) for spec in request.tools] or openai.omit,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
            )
            async with await failures.before(deadline, call) as chunks:
                started, content_type = True, chunks.response.headers.get("content-type", "")
                while (chunk := await failures.before(deadline, anext(chunks, None))) is not None:
                    with failures.reading(self._place):
                        deltas = answer.add(chunk)
                    for delta in deltas:
                        yield delta
        except (openai.APIError, httpx2.HTTPError, ValueError, TimeoutError) as error:
            if answer.finish_reason is None:  # else all has been said, however the connection ends
                raise self.as_provider_error(error, started) from None
        if answer.finish_reason is None:
            raise failures.truncated(self._place, content_type, answer.empty)
        if answer.finish_reason == "error":  # OpenRouter's, when the server behind it failed
            raise ProviderUnavailable(f"{self._place} failed in mid-answer.")
        with failures.reading(self._place):
            completion = answer.completion(request)
        yield completion

    async def models(self) -> tuple[ModelInfo, ...]:
        client = self._connect()
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                with failures.reading(self._place):
                    listed = [ModelInfo(name=m.id, context_tokens=_context_tokens(m)) async for m in client.models.list()]
        except (openai.APIError, httpx2.HTTPError, ValueError, TimeoutError) as error:
            raise self.as_provider_error(error, started=False) from None
        known = {m.name for m in listed}
        return (*listed, *(ModelInfo(name=name) for name in self._config.models if name not in known))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def as_provider_error(self, error: Exception, started: bool) -> ProviderError:
        """Whether and when to try again: the one place that knows the vendors' errors (OpenAI docs: error codes)."""
        if isinstance(error, openai.APIConnectionError):
            return failures.of_transport(error.__cause__ or error, place=self._place, started=started)
        if not isinstance(error, openai.APIError):
            return failures.of_transport(error, place=self._place, started=started)
        headers: Mapping[str, str] = {}
        status = _STATUS_OF_TYPE.get(error.code or "") or _STATUS_OF_TYPE.get(error.type or "")
        if isinstance(error, openai.APIStatusError):
            headers = error.response.headers
            # Out of credit comes as 429, but waiting does not help.
            status = 402 if status == 402 else error.status_code
        elif error.code and error.code.isdigit() and 400 <= int(error.code) < 600:
            status = int(error.code)  # OpenRouter's errors in mid-stream
        return failures.of_status(
            status or 500,
            _said(error.body),
            place=self._place,
            advice=self._advice,
            key=self._key,
            headers=headers,
            code=next((code for code in (error.code, error.type) if code in failures.CONTEXT_CODES), None),
        )

    def _connect(self) -> openai.AsyncOpenAI:
        key = failures.usable_key(self._key, self._advice) if self._config.api_key_env else _NO_KEY
        if self._client is None:
            client = openai.AsyncOpenAI(
                api_key=key,
                base_url=self._config.base_url,
                max_retries=0,
                timeout=failures.timeouts(self._config.idle_timeout_seconds),
            )
            # The package fills these from the environment, and would tell them to any server.
            client.organization = client.project = client.admin_api_key = None
            self._client = client
        return self._client

    def _extra_body(self, request: CompletionRequest) -> dict[str, JsonValue]:
        """Raises ProviderRejected for options that are not an agent's to set."""
        if taken := sorted(_OURS & request.options.keys()):
            raise ProviderRejected(f"These cannot be options of a model: {', '.join(taken)}.")
        body = dict(request.options)
        if "effort" in body:
            body["reasoning_effort"] = body.pop("effort")
        if request.max_output_tokens is not None:
            # OpenAI's newer models refuse the old name, other servers do not know the new one.
            openai_itself = self._place == "api.openai.com"
            body["max_completion_tokens" if openai_itself else "max_tokens"] = request.max_output_tokens
        return body


@dataclass
class _Piece:
    """Text or reasoning while it is being written."""

    kind: Literal["text", "thinking"]
    text: list[str] = field(default_factory=list[str])

    def block(self) -> Text | Thinking:
        text = "".join(self.text)
        return Text(text=text) if self.kind == "text" else Thinking(text=text)


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])


class _Answer:
    """What becomes of the chunks of one answer: text and reasoning in the order they came, then the tool uses."""

    def __init__(self) -> None:
        self.empty = True
        self.finish_reason: str | None = None
        self._refused = False
        self._model: str | None = None
        self._usage: CompletionUsage | None = None
        self._pieces: list[_Piece] = []
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}

    def add(self, chunk: ChatCompletionChunk) -> list[Delta]:
        self.empty = False
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        deltas: list[Delta] = []
        for choice in chunk.choices or ():  # null on the last chunk of some servers
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta:
                deltas += self._extend(choice.delta)
        return deltas

    def completion(self, request: CompletionRequest) -> Completion:
        uses = [tool_use(call.id or new_id("call"), call.name, "".join(call.arguments)) for call in self._calls]
        content: tuple[AnswerBlock, ...] = (*(piece.block() for piece in self._pieces), *uses)
        reason = "refusal" if self._refused else _STOP_REASONS.get(self.finish_reason or "", "end_turn")
        if reason in ("end_turn", "tool_use"):  # some servers say "stop" and call tools, or the other way round
            reason = "tool_use" if uses else "end_turn"
        usage = _counted(self._usage) or _estimated(request, content)
        return Completion(content=content, stop_reason=reason, usage=usage, model=self._model or request.model)

    def _extend(self, delta: ChoiceDelta) -> list[Delta]:
        self._refused = self._refused or bool(delta.refusal)
        extra = delta.model_extra or {}
        reasoning = extra.get("reasoning_content") or extra.get("reasoning")
        deltas = [self._write("thinking", reasoning)] if isinstance(reasoning, str) else []
        deltas += [self._write("text", text) for text in (delta.content, delta.refusal) if text]
        for call in delta.tool_calls or ():
            self._call(call)
        return deltas

    def _write(self, kind: Literal["text", "thinking"], text: str) -> Delta:
        if not self._pieces or self._pieces[-1].kind != kind:
            self._pieces.append(_Piece(kind))
        self._pieces[-1].text.append(text)
        return Delta(index=len(self._pieces) - 1, kind=kind, text=text)

    def _call(self, piece: ChoiceDeltaToolCall) -> None:
        call = self._at.get(piece.index)
        # Ollama and Gemini give parallel calls one index: a new id is then what tells them apart.
        if call is None or (piece.id and call.id and piece.id != call.id):
            call = self._at[piece.index] = _Call()
            self._calls.append(call)
        call.id = piece.id or call.id
        if piece.function:
            call.name = piece.function.name or call.name
            call.arguments.append(piece.function.arguments or "")


def to_messages(system: str | None, messages: Iterable[Message]) -> list[ChatCompletionMessageParam]:
    """Our messages in the API's shape: every tool result is a message of its own, before the text sent with it."""
    out: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        out += _assistant(message) if message.role == "assistant" else _user(message)
    return out


def _assistant(message: Message) -> list[ChatCompletionMessageParam]:
    text = "".join(block.text for block in message.content if isinstance(block, Text))
    calls: list[ChatCompletionMessageFunctionToolCallParam] = [
        # Malformed arguments go back empty: chat templates parse them, and the whole call would fail.
        {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": json.dumps(use.input)}}
        for use in message.content
        if isinstance(use, ToolUse)
    ]
    if calls:
        return [{"role": "assistant", "content": text or None, "tool_calls": calls}]
    return [{"role": "assistant", "content": text}] if text else []


def _user(message: Message) -> list[ChatCompletionMessageParam]:
    out: list[ChatCompletionMessageParam] = [
        {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": f"Error: {block.content}" if block.is_error else block.content,
        }
        for block in message.content
        if isinstance(block, ToolResult)
    ]
    parts: list[ChatCompletionContentPartParam] = []
    for block in message.content:
        if isinstance(block, Text) and block.text:
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, Image | Document) and (part := _part(block)):
            parts.append(part)
    if any(part["type"] != "text" for part in parts):
        out.append({"role": "user", "content": parts})
    elif parts:
        # Plain text as a string: many local servers take nothing else.
        out.append({"role": "user", "content": "\n\n".join(part["text"] for part in parts if part["type"] == "text")})
    return out


def _part(block: Image | Document) -> ChatCompletionContentPartParam | None:
    """None for what this API has no words for; `providers.inputs` has refused that before."""
    match block:
        case Document(source=PlainTextSource(data=text)):
            return {"type": "text", "text": block.as_text(text)}
        case Document(source=Base64Source(media_type=media_type, data=data)):
            file = {"filename": block.title or "document.pdf", "file_data": f"data:{media_type};base64,{data}"}
            return cast(ChatCompletionContentPartParam, {"type": "file", "file": file})
        case Image(source=Base64Source(media_type=media_type, data=data)):
            return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
        case Image(source=UrlSource(url=url)):
            return {"type": "image_url", "image_url": {"url": url}}
        case _:
            return None


def _tool(spec: ToolSpec) -> ChatCompletionFunctionToolParam:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.input_schema}
    return cast(ChatCompletionFunctionToolParam, {"type": "function", "function": function})


def _counted(usage: CompletionUsage | None) -> Usage | None:
    """OpenAI's `prompt_tokens` include those read from and written to its cache; ours do not. All zero means unknown."""
    if usage is None:
        return None
    asked, answered = failures.count(usage.prompt_tokens) or 0, failures.count(usage.completion_tokens) or 0
    if not (asked or answered):
        return None
    details = usage.prompt_tokens_details
    read = (details and failures.count(details.cached_tokens)) or 0
    written = (details and failures.count(details.cache_write_tokens)) or 0
    return Usage(
        input_tokens=max(asked - read - written, 0),
        output_tokens=answered,
        cache_read_input_tokens=read,
        cache_creation_input_tokens=written,
    )


def _estimated(request: CompletionRequest, content: Iterable[AnswerBlock]) -> Usage:
    asked = request.model_dump_json(include={"system", "messages", "tools"})
    return Usage(
        input_tokens=estimate_tokens(asked),
        output_tokens=sum(estimate_tokens(b.text if not isinstance(b, ToolUse) else b.model_dump_json()) for b in content),
        estimated=True,
    )


def _context_tokens(model: Model) -> int | None:
    extra = model.model_extra or {}
    return next((count for name in _CONTEXT_MEMBERS if (count := failures.count(extra.get(name)))), None)


def _said(body: object) -> str | None:
    """The vendor's sentence: `error.message`, or what other servers put in its place."""
    if isinstance(body, str):
        return body
    if not isinstance(body, dict):
        return None
    members = cast(dict[str, object], body)
    return next((text for name in ("message", "detail") if isinstance(text := members.get(name), str)), None)
