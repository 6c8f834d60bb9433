"""A file as `multipart/form-data`: written to the disk as it comes, under a limit, before any lock is taken."""

import asyncio
import json
import mimetypes
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.auth import authenticate
from api.state import Service
from api.transaction import TransactionalRoute
from domain.errors import Forbidden, Invalid, Pointer, TooLarge, Unavailable
from domain.files import UNKNOWN_MEDIA_TYPE, file_name, media_type_of
from domain.ids import new_id
from domain.keys import Scope
from storage.database import Database
from tools.store import Kept, keep

OVERHEAD_BYTES = 64 * 1024
"""What a body may have beside the file: boundaries and headers."""
UPLOAD_SCOPE: Scope = "sessions:write"
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


@dataclass(frozen=True)
class Uploaded:
    """A file that has come in whole, and waits for its row."""

    id: str
    name: str
    media_type: str
    kept: Kept


async def _uploaded(request: Request) -> Uploaded:
    return request.state.uploaded


TheUpload = Annotated[Uploaded, Depends(_uploaded)]


class UploadRoute(TransactionalRoute):
    """The file is stored first; where the request then fails, it is removed again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def within(request: Request) -> Response:
            done = False
            try:
                response = await handle(request)
                done = response.status_code < 300 and "Idempotent-Replayed" not in response.headers
                return response
            except Unavailable:
                done = True  # perhaps its row is there all the same: what is not is tidied away
                raise
            finally:
                if not done and (uploaded := getattr(request.state, "uploaded", None)):
                    service: Service = request.app.state.service
                    await asyncio.to_thread(service.files.remove_stored, request.state.caller.workspace_id, [uploaded.id])

        return within

    async def receive(self, request: Request) -> bytes:
        database: Database = request.app.state.database
        async with database.read() as connection:
            caller = await authenticate(request, connection)
        if UPLOAD_SCOPE not in caller.scopes:  # before half a gigabyte is taken
            raise Forbidden(f"This key lacks the scope {UPLOAD_SCOPE}.")
        service: Service = request.app.state.service
        uploaded = await _take(request, service, caller.workspace_id)
        request.state.uploaded = uploaded
        return json.dumps([uploaded.name, uploaded.media_type, *uploaded.kept]).encode()


async def _take(request: Request, service: Service, workspace_id: str) -> Uploaded:
    """Raises Invalid, TooLarge."""
    most = service.files.max_file_bytes
    headers = Headers({"content-type": request.headers.get("content-type", "")})
    if not headers["content-type"].lower().startswith("multipart/form-data"):
        raise Invalid("Send the file as multipart/form-data, in the part `file`.")
    try:
        form = await MultiPartParser(headers, _limited(request, most), max_files=1, max_fields=0).parse()
    except (MultiPartException, FormParserError, KeyError, UnicodeDecodeError) as error:
        raise Invalid("The body is no multipart/form-data with the part `file`, a file, and no other.") from error
    try:
        file = form.get("file")
        if len(form) != 1 or not isinstance(file, UploadFile):
            fault = Pointer(pointer="/file", detail="Send one part, `file`, with a file name.")
            raise Invalid(fault.detail, fault)
        if (file.size or 0) > most:
            raise _too_large(most)
        id = new_id("file")
        kept = await asyncio.to_thread(keep, file.file, service.files.path(workspace_id, id), most)
        name = file_name(file.filename or "")
        said = media_type_of(file.content_type)
        guessed = mimetypes.guess_type(name)[0] if said in (None, UNKNOWN_MEDIA_TYPE) else None
        media_type = guessed or said or UNKNOWN_MEDIA_TYPE
        return Uploaded(id, name or f"unnamed{mimetypes.guess_extension(media_type) or ''}", media_type, kept)
    finally:
        await form.close()


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes]:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most + OVERHEAD_BYTES:
        raise _too_large(most)
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most + OVERHEAD_BYTES:
            raise _too_large(most)
        yield piece


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The file is over {most >> 20:,} MB.")
