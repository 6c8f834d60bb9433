"""What a provider is asked and what it answers: the one interface behind which every model vendor stands."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, JsonValue

from domain.usage import Usage


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
    type: Literal["image"] = "image"
    media_type: str
    data: str
    """Base 64."""


AnswerBlock = Annotated[Text | Thinking | ToolUse, Field(discriminator="type")]
Block = Annotated[Text | Thinking | ToolUse | ToolResult | Image, Field(discriminator="type")]


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
