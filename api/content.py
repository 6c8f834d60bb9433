"""What people send: text as a string, or content blocks with the names of the `anthropic` package."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from domain.payload import TextContent

MAX_TEXT = 1_000_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
Note = Annotated[str, StringConstraints(max_length=1_000)] | None


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextBlock(_Sent):
    type: Literal["text"]
    text: Text


class Base64Given(_Sent):
    """It becomes a file of the workspace, and its event names that."""

    type: Literal["base64"]
    media_type: Annotated[str, Field(max_length=100)]
    data: Annotated[str, Field(min_length=1)]


class UrlGiven(_Sent):
    """Passed on to models whose vendor fetches it; never fetched here."""

    type: Literal["url"]
    url: Annotated[str, Field(max_length=4_000, pattern=r"^https?://[^\s]+$")]


class FileGiven(_Sent):
    """A file that was uploaded before."""

    type: Literal["file"]
    file_id: Annotated[str, Field(max_length=100)]


class TextGiven(_Sent):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: Text


class ImageBlock(_Sent):
    """PNG, JPEG, GIF or WebP."""

    type: Literal["image"]
    source: Annotated[Base64Given | UrlGiven | FileGiven, Field(discriminator="type")]


class DocumentBlock(_Sent):
    """PDF or text."""

    type: Literal["document"]
    source: Annotated[Base64Given | UrlGiven | FileGiven | TextGiven, Field(discriminator="type")]
    title: Note = None
    context: Note = None


Block = Annotated[TextBlock | ImageBlock | DocumentBlock, Field(discriminator="type")]
Blocks = Annotated[list[Block], Field(min_length=1, max_length=100)]
Content = Text | Annotated[list[TextBlock], Field(min_length=1, max_length=100)]
MessageContent = Text | Blocks

Given = TextContent | ImageBlock | DocumentBlock
"""A piece of a message before it is stored."""


def content_of(content: "str | list[TextBlock]") -> tuple[TextContent, ...]:
    if isinstance(content, str):
        return (TextContent(text=content),)
    return tuple(TextContent(text=block.text) for block in content)


def message_of(content: "str | list[Block]") -> tuple[Given, ...]:
    if isinstance(content, str):
        return content_of(content)
    return tuple(TextContent(text=block.text) if isinstance(block, TextBlock) else block for block in content)
