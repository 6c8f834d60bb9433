"""A deterministic model: the offline demo, the model of the tests and of the benchmarks.

It keeps nothing between calls. Which step it is at follows from the request alone, so a call that is made again by another
worker says the same again. The script language is described in docs/scripted-provider.md.
"""

import asyncio
import hashlib
import json
import re
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterable
from functools import lru_cache
from importlib.resources import files
from math import inf
from typing import Annotated, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError

from domain import titles
from domain.compaction import SUMMARY_SYSTEM
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
    ToolUse,
    tokens_of,
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
from domain.payload import Base64Source, PlainTextSource, UrlSource
from domain.strict import Strict
from domain.transcript import ASKED_NOTE
from domain.usage import Usage, estimate_tokens
from providers.config import ScriptedConfig
from providers.failures import MAX_PAUSE_SECONDS

MODELS = ("demo", "echo", "script")
END = "(end of script)"
_EXAMPLE = '{"script": [{"text": "Hello."}]}'
_LOREM = ("lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed")
_FAILURES: dict[str, type[ProviderError]] = {
    "unavailable": ProviderUnavailable,
    "rate_limited": ProviderRateLimited,
    "auth": ProviderAuth,
    "rejected": ProviderRejected,
}

Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]
Tokens = Annotated[int, Field(ge=0, le=1_000_000_000)]
Attempts = Annotated[int, Field(ge=0)]


class Call(Strict):
    """A tool call of a step."""

    name: str = Field(min_length=1)
    input: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


class StepUsage(Strict):
    """Tokens the step claims; those it leaves out are counted from the text."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens = 0
    cache_creation_input_tokens: Tokens = 0


class Failure(Strict):
    """The step fails while the call's attempt is at most `times`; None: always."""

    code: Literal["unavailable", "rate_limited", "auth", "rejected"]
    message: str = "the script says so"
    retry_after_seconds: float | None = Field(default=None, ge=0, le=MAX_PAUSE_SECONDS)
    times: Attempts | None = None


class Step(Strict):
    """What one model call answers, how fast, and what goes wrong on the way."""

    thinking: str = ""
    text: str = ""
    words: int = Field(default=0, ge=0, le=100_000)
    """That many words of filler after `text`, every tenth of them its own number so that a gap or a repeat shows."""
    tools: tuple[Call, ...] = ()
    first_token_ms: Milliseconds = 0
    delay_ms: Milliseconds = 0
    """Before every piece but the first."""
    chunk_chars: int = Field(default=12, ge=1, le=1_000_000)
    usage: StepUsage | None = None
    stop_reason: StopReason | None = None
    fail: Failure | None = None
    truncate_attempts: Attempts = 0
    stall_attempts: Attempts = 0

    @property
    def answer(self) -> str:
        filler = (str(n) if n % 10 == 0 else _LOREM[n % 10 - 1] for n in range(1, self.words + 1))
        return " ".join([*([self.text] if self.text else []), *filler])


class Script(Strict):
    """Steps in the order of the model calls that they answer."""

    script: tuple[Step, ...] = Field(max_length=10_000)


class Story(Strict):
    """The demonstration. `{message}` stands for what the person asked."""

    with_tools: tuple[Step, ...]
    without_tools: tuple[Step, ...]
    later: tuple[Step, ...]
    title: Step


class ScriptedProvider:
    """Answers from a script whatever the model's name; without one, `demo` tells a story, `echo` repeats."""

    kind = "scripted"

    def __init__(self, config: ScriptedConfig) -> None:
        self._config = config
        self._story: JsonValue = yaml.safe_load(files("providers").joinpath("demo.yaml").read_text(encoding="utf-8"))

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        """Play one step. Raises ProviderRejected for a bad script, and whatever the step tells it to raise."""
        step = self._step(request)
        if step.fail and (step.fail.times is None or request.attempt <= step.fail.times):
            raise _FAILURES[step.fail.code](step.fail.message, step.fail.retry_after_seconds)
        pace = _Pace(self._config)
        content, stop_reason = _answer(step, request)
        pieces = [
            Delta(index=index, kind=block.type, text=block.text[at : at + step.chunk_chars])
            for index, block in enumerate(content)
            if not isinstance(block, ToolUse)
            for at in range(0, len(block.text), step.chunk_chars)
        ]
        broken = request.attempt <= max(step.truncate_attempts, step.stall_attempts)
        await pace.wait(step.first_token_ms / 1000)
        for number, piece in enumerate(pieces[: (len(pieces) + 1) // 2] if broken else pieces):
            if number and step.delay_ms:
                await pace.wait(step.delay_ms / 1000)
            elif number % 32 == 31:
                await asyncio.sleep(0)
            yield piece
        if request.attempt <= step.stall_attempts:
            await pace.wait(inf)
        if request.attempt <= step.truncate_attempts:
            raise ProviderTruncated("the script cut its own stream")
        yield Completion(content=content, stop_reason=stop_reason, usage=_usage(step, content, request), model=request.model)

    async def models(self) -> tuple[ModelInfo, ...]:
        return tuple(ModelInfo(name=name) for name in MODELS)

    async def close(self) -> None:
        return None

    def _step(self, request: CompletionRequest) -> Step:
        if request.system == SUMMARY_SYSTEM:
            text = request.messages[-1].content[0]
            return Step(text=f"A scripted summary of {len(text.text) if isinstance(text, Text) else 0:,} characters.")
        for at, message in reversed(list(enumerate(request.messages))):
            source = next((t for t in reversed(_texts(message)) if _is_script(t)), None)
            if source is not None:
                answered = sum(m.role == "assistant" for m in request.messages[at:])
                return _nth(_parse(source).script, answered + _not_shown(message))
        match request.model:
            case "demo":
                return self._demo(request)
            case "echo":
                text = next((" ".join(t) for m in reversed(request.messages) if (t := _seen(m))), "(no text)")
                # At most some 200 pieces, so that echoing a book takes two seconds and not minutes.
                return Step(text=text, delay_ms=10, chunk_chars=max(12, len(text) // 200))
            case "script":
                raise ProviderRejected(f"the model script wants a message that is a script, such as {_EXAMPLE}")
            case name:
                raise ProviderRejected(f"no scripted model is called {name!r}; there are {', '.join(MODELS)}")

    def _demo(self, request: CompletionRequest) -> Step:
        """The next step of the story. What a stop cut off is said again, and the note that follows it is no new question."""
        messages = request.messages
        if request.system == titles.SYSTEM:
            return self._tell(" ".join(" ".join(_texts(messages[0])[:1]).split())).title
        # Without the message: it is never at the end of a text.
        chapters = self._tell("")
        ends = tuple(step.text[-24:] for step in (*chapters.with_tools, *chapters.without_tools, *chapters.later))
        whole = [_is_whole(message, (*ends, END)) for message in messages]
        questions = [at for at, message in enumerate(messages) if _texts(message) and (at == 0 or whole[at - 1])]
        at = questions[-1] if questions else 0
        words = " ".join(" ".join(_texts(messages[at])).split())
        chapters = self._tell(words if len(words) <= 80 else words[:79] + "…")
        if any(message.role == "assistant" for message in messages[:at]):
            steps = chapters.later
        elif {"write", "read"} <= {tool.name for tool in request.tools}:
            steps = chapters.with_tools
        else:
            steps = chapters.without_tools
        return _nth(steps, sum(m.role == "assistant" and w for m, w in zip(messages[at:], whole[at:], strict=True)))

    def _tell(self, message: str) -> Story:
        return Story.model_validate(_fill(self._story, message))


class _Pace:
    """Waits as a vendor would, and gives up as our adapters do: after the idle time, and at the call's time limit."""

    def __init__(self, config: ScriptedConfig) -> None:
        self._idle = config.idle_timeout_seconds
        self._deadline = asyncio.get_running_loop().time() + config.timeout_seconds

    async def wait(self, seconds: float) -> None:
        if not seconds:
            return
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        await asyncio.sleep(min(seconds, self._idle, left))
        if seconds > left:
            raise ProviderStalled("the scripted call took longer than its timeout_seconds")
        if seconds > self._idle:
            raise ProviderStalled(f"the scripted model was silent for {self._idle:g} s")


@lru_cache(maxsize=32)  # every call of a run reads the same script
def _is_script(text: str) -> bool:
    """Whether a user's text is meant as a script: a JSON object with the key `script`, or what starts like one."""
    text = text.strip()
    if not text.startswith("{") or '"script"' not in text:
        return False
    try:
        return "script" in json.loads(text)
    except (ValueError, RecursionError):
        return text[1:].lstrip().startswith('"script"')


@lru_cache(maxsize=32)
def _parse(source: str) -> Script:
    try:
        # Not the JSON parser's own float constants: NaN in a tool's input could not be stored.
        json.loads(source, parse_constant=_no_constant)
        return Script.model_validate_json(source)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'script'}: {e['msg']}" for e in error.errors()[:5])
        # `from None`: causes travel into Temporal's history, and this one quotes the whole script.
        raise ProviderRejected(f"the script cannot be used: {faults}") from None
    except (ValueError, RecursionError) as error:
        raise ProviderRejected(f"the script is no valid JSON: {error}") from None


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not a number")


def _nth(steps: tuple[Step, ...], at: int) -> Step:
    return steps[at] if at < len(steps) else Step(text=END)


def _texts(message: Message) -> list[str]:
    """The texts a person wrote in this message; empty for the assistant's and for tool results only."""
    return [b.text for b in message.content if isinstance(b, Text)] if message.role == "user" else []


def _seen(message: Message) -> list[str]:
    """The same with its images and documents."""
    if message.role != "user":
        return []
    return [b.text if isinstance(b, Text) else _described(b) for b in message.content if isinstance(b, Text | Image | Document)]


def _described(block: Image | Document) -> str:
    match block:
        case Document(source=PlainTextSource(data=text)):
            return block.as_text(text)
        case Image(source=Base64Source(media_type=kind, data=data)) | Document(source=Base64Source(media_type=kind, data=data)):
            return f"[{block.type}, {kind}, {len(b64decode(data)):,} bytes]"
        case Image(source=UrlSource(url=url)) | Document(source=UrlSource(url=url)):
            return f"[{block.type} at {url}]"
        case _:
            return f"[{block.type}]"


_ANSWERED = re.compile(re.escape(ASKED_NOTE).replace(r"\{\}", r"(\d+)"))


def _not_shown(message: Message) -> int:
    """How many answers to this message a compaction has taken away."""
    return sum(int(found[1]) for text in _texts(message) if (found := _ANSWERED.fullmatch(text)))


def _is_whole(message: Message, ends: tuple[str, ...]) -> bool:
    """Whether nothing stopped the demo in this answer: it calls a tool or ends as one of the story's texts does."""
    if message.role == "user" or any(isinstance(b, ToolUse) for b in message.content):
        return True
    return any(isinstance(b, Text) and b.text.endswith(ends) for b in message.content[-1:])


def _fill(value: JsonValue, message: str) -> JsonValue:
    match value:
        case str():
            return value.replace("{message}", message)
        case list():
            return [_fill(item, message) for item in value]
        case dict():
            return {key: _fill(item, message) for key, item in value.items()}
        case _:
            return value


def _answer(step: Step, request: CompletionRequest) -> tuple[tuple[AnswerBlock, ...], StopReason]:
    """The step's blocks and stop reason, cut at `max_output_tokens` as a vendor would."""
    thinking, text = step.thinking, step.answer
    room = inf if request.max_output_tokens is None else request.max_output_tokens * 4
    blocks: list[AnswerBlock] = []
    if len(thinking) + len(text) > room:
        thinking = thinking[: int(room)]
        text = text[: int(room) - len(thinking)]
    cut = (thinking, text) != (step.thinking, step.answer)
    if thinking:
        blocks.append(Thinking(text=thinking))
    if text:
        blocks.append(Text(text=text))
    if cut:
        return tuple(blocks), "max_tokens"
    for number, call in enumerate(step.tools):
        blocks.append(ToolUse(id=_tool_use_id(request, number), name=call.name, input=call.input))
    return tuple(blocks), step.stop_reason or ("tool_use" if step.tools else "end_turn")


def _tool_use_id(request: CompletionRequest, number: int) -> str:
    """The same for every attempt of this call, and no other in the conversation's: tool calls are told apart by it."""
    earlier = sum(isinstance(b, ToolUse) for m in request.messages for b in m.content)
    seed = f"{len(request.messages)}/{earlier}/{number}/{request.messages[-1].model_dump_json()}"
    return "toolu_" + hashlib.sha256(seed.encode()).hexdigest()[:24]


def _usage(step: Step, content: tuple[AnswerBlock, ...], request: CompletionRequest) -> Usage:
    said = step.usage or StepUsage()
    asked = _flat(b for m in request.messages for b in m.content)
    seen = sum(tokens_of(b) for m in request.messages for b in m.content if isinstance(b, Image | Document))
    count_in = estimate_tokens((request.system or "") + "".join(t.model_dump_json() for t in request.tools) + asked) + seen
    count_out = estimate_tokens(_flat(content))
    return Usage(
        input_tokens=count_in if said.input_tokens is None else said.input_tokens,
        output_tokens=count_out if said.output_tokens is None else said.output_tokens,
        cache_read_input_tokens=said.cache_read_input_tokens,
        cache_creation_input_tokens=said.cache_creation_input_tokens,
    )


def _flat(blocks: Iterable[Block]) -> str:
    parts: list[str] = []
    for block in blocks:
        match block:
            case Text() | Thinking():
                parts.append(block.text)
            case ToolUse():
                parts.append(block.name + json.dumps(block.input))
            case ToolResult():
                parts.append(block.content)
            case Image() | Document():
                pass  # counted as what they are
    return "".join(parts)
