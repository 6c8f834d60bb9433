"""A tool result's content blocks as the text that the model reads."""

import binascii
from collections.abc import Iterator

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic_core import to_json


def text_of(result: CallToolResult) -> str:
    """Texts as they are, one below the other; of what is no text, what it is. Structured content where there is nothing
    else: a server that has both says the same twice (MCP 2025-06-18, server/tools, Structured Content)."""
    parts = [part for block in result.content for part in _parts(block)]
    if not parts and result.structured_content is not None:
        return to_json(result.structured_content).decode()
    return "\n\n".join(parts)


def _parts(block: ContentBlock) -> Iterator[str]:
    match block:
        case TextContent(text=text):
            yield text
        case ImageContent(data=data, mime_type=kind):
            yield f"[an image, {kind}, {_size(data)}, which cannot be shown here]"
        case AudioContent(data=data, mime_type=kind):
            yield f"[a sound, {kind}, {_size(data)}, which cannot be played here]"
        case ResourceLink():
            about = f": {block.description}" if block.description else ""
            yield f"[a resource, {block.title or block.name}, at {block.uri}{about}]"
        case EmbeddedResource(resource=BlobResourceContents() as blob):
            yield f"[a file, {blob.uri}, {blob.mime_type or 'of no stated type'}, {_size(blob.blob)}]"
        case EmbeddedResource(resource=TextResourceContents() as text):
            yield f"{text.uri}\n{text.text}"
        case _:
            pass


def _size(base64: str) -> str:
    try:
        return f"{len(binascii.a2b_base64(base64)):,} bytes"
    except (binascii.Error, ValueError):
        return "damaged"
