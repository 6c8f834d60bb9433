"""Images and documents on their way to a model: read just before the call, for the log has only the ids of their files."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from domain.completions import Block, Document, Image, Message, Text
from domain.media import TEXT, media_type_of_bytes, text_of
from domain.payload import Base64Source, FileSource, PlainTextSource
from providers.config import ProviderConfig
from providers.inputs import refusal
from storage.database import Database
from storage.files import in_session
from tools.store import FileStore

GONE = "[{}: the file {} was deleted]"
REFUSED = "[{}, which cannot be shown: this model {}]"


class Attachments:
    def __init__(self, database: Database, files: FileStore) -> None:
        self._database = database
        self._files = files

    async def filled_in(self, session_id: str, config: ProviderConfig, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the content of their files. What is gone, and what the model does not take, is named instead.

        The API refuses what the model does not take; but an operator, or a new version of the agent, may change models.
        """
        ids = {
            block.source.file_id
            for message in messages
            for block in message.content
            if isinstance(block, Image | Document) and isinstance(block.source, FileSource)
        }
        contents: Mapping[str, bytes] = {}
        if ids:
            async with self._database.read() as connection:
                rows = await in_session(connection, session_id, sorted(ids))
            paths = {row.id: self._files.path(row.workspace_id, row.id) for row in rows}
            contents = {id: content for id, path in paths.items() if (content := await asyncio.to_thread(_read, path))}
        return tuple(
            message.model_copy(update={"content": tuple(_filled_in(block, contents, config) for block in message.content)})
            for message in messages
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _filled_in(block: Block, contents: Mapping[str, bytes], config: ProviderConfig) -> Block:
    if not isinstance(block, Image | Document):
        return block
    if isinstance(block.source, FileSource):
        content = contents.get(block.source.file_id)
        media_type = None if content is None else media_type_of_bytes(content)
        if content is None or media_type is None:
            return Text(text=GONE.format(block.type, block.source.file_id))
        if isinstance(block, Document) and media_type == TEXT:
            block = block.model_copy(update={"source": PlainTextSource(data=text_of(content) or "")})
        else:
            source = Base64Source(media_type=media_type, data=b64encode(content).decode())
            block = block.model_copy(update={"source": source})
    why = refusal(config, block)
    return block if why is None else Text(text=REFUSED.format(f"{'an' if block.type == 'image' else 'a'} {block.type}", why))
