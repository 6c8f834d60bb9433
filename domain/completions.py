"""What a provider is asked and what it answers: the one interface behind which every model vendor stands."""

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, JsonValue

from domain.payload import Base64Source, FileSource, PlainTextSource, UrlSource
from domain.usage import Usage, estimate_tokens


class Text(BaseModel, frozen=True):
    type: Literal["text"] = "text"
    text: str


class Thinking(BaseModel, frozen=True):
    type: Literal["thinking"] = "thinking"
    text: str
    signature: str | None = None
    """The vendor's proof that the reasoning is its own; sent back to it, never to anybody else."""
    redacted: str | None = None
    """Anthropic's encrypted reasoning (`redacted_thinking.data`); `text` is then empty."""


class ToolUse(BaseModel, frozen=True):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, JsonValue]
    malformed: str | None = None
    """The arguments as the model wrote them when they are no JSON object; `input` is then empty."""


class ToolResult(BaseModel, frozen=True):
    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: str
    is_error: bool = False


class Image(BaseModel, frozen=True):
    """The source of a conversation's may be a file; a provider is given what is in it."""

    type: Literal["image"] = "image"
    source: Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class Document(BaseModel, frozen=True):
    """As Image. What is text is a plain text source, whatever it was sent as."""

    type: Literal["document"] = "document"
    source: Annotated[Base64Source | UrlSource | FileSource | PlainTextSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None

    def as_text(self, text: str) -> str:
        """For models that know no documents: its text under its title."""
        about = f"\n{self.context}" if self.context else ""
        return f"[document: {self.title or 'untitled'}]{about}\n{text}\n[end of the document]"


AnswerBlock = Annotated[Text | Thinking | ToolUse, Field(discriminator="type")]
Block = Annotated[Text | Thinking | ToolUse | ToolResult | Image | Document, Field(discriminator="type")]


IMAGE_TOKENS = 1_600
"""What Anthropic counts for its largest size (docs: Vision); for others no better guess is at hand."""
DOCUMENT_TOKENS = 10_000
"""A guess: some seven pages of PDF."""


def tokens_of(block: Block) -> int:
    """An estimate."""
    match block:
        case Text(text=text) | ToolResult(content=text) | Document(source=PlainTextSource(data=text)):
            return estimate_tokens(text)
        case Thinking(text=text):
            return estimate_tokens(text + (block.signature or "") + (block.redacted or ""))
        case ToolUse(name=name, input=arguments):
            return estimate_tokens(name + json.dumps(arguments, ensure_ascii=False))
        case Image():
            return IMAGE_TOKENS
        case Document():
            return DOCUMENT_TOKENS


class Message(BaseModel, frozen=True):
    role: Literal["user", "assistant"]
    content: tuple[Block, ...]


class ToolSpec(BaseModel, frozen=True):
    """A tool as the model sees it; `input_schema` is a JSON Schema object."""

    name: str
    description: str
    input_schema: dict[str, JsonValue]


class CompletionRequest(BaseModel, frozen=True):
    """One model call. Roles alternate, the first and the last message are the user's."""

    model: str
    """The part behind the colon of `provider:name`."""
    messages: tuple[Message, ...]
    system: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    max_output_tokens: int | None = None
    options: dict[str, JsonValue] = {}
    """The agent's `model` members besides `id`, such as `effort` or `temperature`."""
    attempt: int = 1
    """1 for the first try of this call, 2 for its first retry …"""


class Delta(BaseModel, frozen=True):
    """A piece of the block `content[index]` of the completion under way; the pieces joined are its text."""

    index: int
    kind: Literal["text", "thinking"]
    text: str


StopReason = Literal["end_turn", "tool_use", "max_tokens", "refusal", "continue"]
"""`continue`: the vendor paused a long turn (Anthropic's `pause_turn`) and wants to be called again as it is."""


class Completion(BaseModel, frozen=True):
    """The whole answer, the last item of every stream that did not raise."""

    content: tuple[AnswerBlock, ...]
    stop_reason: StopReason
    usage: Usage
    model: str
    """The name the vendor answered with, for pricing."""


class ModelInfo(BaseModel, frozen=True):
    name: str
    context_tokens: int | None = None
    max_output_tokens: int | None = None


class Provider(Protocol):
    """An adapter to one vendor. It never retries (Temporal does) and keeps nothing between calls."""

    kind: str

    def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        """Call the model: deltas as they come, at last one Completion.

        Raises only ProviderError. Closing the iterator or cancelling the task ends the call at once, connection and
        child processes included. A stream that ends without a stop reason raises ProviderTruncated, one that is silent
        for the configured idle time ProviderStalled.
        """
        ...

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models it can call now. Raises ProviderError."""
        ...

    async def close(self) -> None: ...
