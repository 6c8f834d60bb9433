"""Images and documents in messages: whether the agent's model takes them, and where they are kept."""

import asyncio
import io
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Sequence
from dataclasses import dataclass

from api.content import MAX_TEXT, Base64Given, DocumentBlock, FileGiven, Given, ImageBlock, TextGiven
from api.transaction import Unit
from domain.clock import now
from domain.completions import Document, Image
from domain.errors import Invalid, Pointer
from domain.ids import new_id
from domain.media import EXTENSIONS, MEDIA_TYPES, TEXT, media_type_of_bytes
from domain.payload import (
    DocumentContent,
    FileSource,
    ImageContent,
    PlainTextSource,
    TextContent,
    UrlSource,
    UserContent,
)
from providers.inputs import refusal
from providers.registry import Providers
from storage.agents import config_of
from storage.files import Files
from storage.tables import FileRow
from tools.store import FileStore, keep

MAX_MESSAGE_BYTES = 20 << 20
"""Of one image or document: vendors take requests of some 30 MB, in base 64."""


@dataclass(frozen=True)
class _Place:
    """A block of a message, its agent's model and where in the request's body it is."""

    kind: str
    provider: str
    model: str
    pointer: str

    def fault(self, detail: str) -> Invalid:
        return Invalid(detail, Pointer(pointer=self.pointer, detail=detail))


class ContentService:
    def __init__(self, files: FileStore, providers: Providers) -> None:
        self._files = files
        self._providers = providers

    async def take(self, unit: Unit, agent: tuple[str, int], given: Sequence[Given], at: str) -> tuple[UserContent, ...]:
        """The content as the event holds it; what is given as base64 becomes a file of the workspace.

        `agent`: id and version; `at`: where in the request's body the content is. Raises Invalid.
        """
        texts = tuple(block for block in given if isinstance(block, TextContent))
        if len(texts) == len(given):
            return texts
        model = (await config_of(unit.connection, *agent)).model
        taken: list[UserContent] = []
        left = MAX_MESSAGE_BYTES
        for index, block in enumerate(given):
            if isinstance(block, TextContent):
                taken.append(block)
            else:
                place = _Place(block.type, model.provider, model.id, f"{at}/{index}")
                content, size = await self._take(unit, block, place, left)
                left -= size
                taken.append(content)
        return tuple(taken)

    async def _take(
        self, unit: Unit, block: ImageBlock | DocumentBlock, place: _Place, most: int
    ) -> tuple[ImageContent | DocumentContent, int]:
        """With the bytes of its file, which has at most so many."""
        size = 0
        match block.source:
            case Base64Given() as given:
                source, size = await self._store(unit, given, place, most)
            case FileGiven(file_id=file_id):
                source, size = await self._find(unit, file_id, place, most)
            case TextGiven(data=text):
                source = PlainTextSource(data=text)
            case given:
                source = UrlSource(url=given.url)
                self._check(source, place)
        if isinstance(block, ImageBlock):
            assert not isinstance(source, PlainTextSource), "no image has a text for its source"
            return ImageContent(source=source), size
        return DocumentContent(source=source, title=block.title, context=block.context), size

    async def _store(self, unit: Unit, given: Base64Given, place: _Place, most: int) -> tuple[FileSource, int]:
        try:
            content = await asyncio.to_thread(b64decode, given.data, validate=True)
        except (NotBase64, ValueError) as error:
            raise place.fault("The data is not base64.") from error
        _check_size(len(content), most, place)
        media_type = self._media_type(content, FileSource(file_id=""), place)
        if media_type != given.media_type:
            raise place.fault(f"The data is {media_type}, and not {given.media_type}.")
        id, workspace_id = new_id("file"), unit.caller.workspace_id
        # Should the request fail after all, nothing names the file, and it is tidied away.
        path = self._files.path(workspace_id, id)
        kept = await asyncio.to_thread(keep, io.BytesIO(content), path, most)
        row = FileRow(
            id=id,
            workspace_id=workspace_id,
            filename=f"{place.kind}.{EXTENSIONS[media_type]}",
            media_type=media_type,
            size_bytes=kept.size_bytes,
            sha256=kept.sha256,
            created_at=now(),
        )
        await Files(unit.connection, workspace_id).add(row)
        return FileSource(file_id=id), row.size_bytes

    async def _find(self, unit: Unit, file_id: str, place: _Place, most: int) -> tuple[FileSource, int]:
        row = (await Files(unit.connection, unit.caller.workspace_id).many([file_id])).get(file_id)
        if row is None:
            raise place.fault(f"There is no file {file_id}.")
        _check_size(row.size_bytes, most, place)
        try:
            content = await asyncio.to_thread(self._files.path(row.workspace_id, row.id).read_bytes)
        except FileNotFoundError as error:
            raise place.fault(f"File {file_id} is being deleted.") from error
        source = FileSource(file_id=file_id)
        if self._media_type(content, source, place) == TEXT and len(content) > MAX_TEXT:
            raise place.fault(f"File {file_id} has over {MAX_TEXT:,} bytes of text, too much for a message.")
        return source, row.size_bytes

    def _media_type(self, content: bytes, source: FileSource, place: _Place) -> str:
        """Of content that the model takes. Raises Invalid."""
        media_type = media_type_of_bytes(content)
        wanted = MEDIA_TYPES[place.kind]
        if media_type is None or media_type not in wanted:
            raise place.fault(f"What is given is no {place.kind} that models take; those are {', '.join(wanted)}.")
        self._check(PlainTextSource(data="") if media_type == TEXT else source, place)
        return media_type

    def _check(self, source: FileSource | UrlSource | PlainTextSource, place: _Place) -> None:
        """Raises Invalid where the agent's model does not take that."""
        config = self._providers.configs.get(place.provider)
        if config is None or isinstance(source, PlainTextSource):
            return  # a provider that is gone: the run says so
        block = Image(source=source) if place.kind == "image" else Document(source=source)
        if why := refusal(config, block):
            raise place.fault(f"The model {place.model} {why}.")


def _check_size(size: int, most: int, place: _Place) -> None:
    """Raises Invalid. Each block counts, also of a file that is there twice: the model is given it twice."""
    if size > most:
        raise place.fault(f"The images and documents of a message have at most {MAX_MESSAGE_BYTES >> 20} MB together.")
