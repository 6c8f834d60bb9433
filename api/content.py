"""What people send: text, as a string or as content blocks."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from domain.events import TextContent

MAX_TEXT = 1_000_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]


class TextBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextBlock], Field(min_length=1, max_length=100)]


def content_of(content: "str | list[TextBlock]") -> tuple[TextContent, ...]:
    if isinstance(content, str):
        return (TextContent(text=content),)
    return tuple(TextContent(text=block.text) for block in content)
