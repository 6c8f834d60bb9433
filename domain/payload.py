"""What the payloads of events are made of. Blocks of content as in the `anthropic` package (types/beta/sessions)."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TextContent(Payload):
    type: Literal["text"] = "text"
    text: str


class Base64Source(Payload):
    type: Literal["base64"] = "base64"
    media_type: str
    data: str


class UrlSource(Payload):
    """What the model's vendor fetches; we never do."""

    type: Literal["url"] = "url"
    url: str


class FileSource(Payload):
    """A stored file of the workspace: the log holds its id, never its bytes."""

    type: Literal["file"] = "file"
    file_id: str


class PlainTextSource(Payload):
    type: Literal["text"] = "text"
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ImageContent(Payload):
    type: Literal["image"] = "image"
    source: Annotated[FileSource | UrlSource, Field(discriminator="type")]


class DocumentContent(Payload):
    type: Literal["document"] = "document"
    source: Annotated[FileSource | UrlSource | PlainTextSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


UserContent: TypeAlias = Annotated[TextContent | ImageContent | DocumentContent, Field(discriminator="type")]
