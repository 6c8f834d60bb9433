"""/v1/sessions/import"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request, Response

from api.auth import SessionsWrite, authenticate
from api.errors import PROBLEMS
from api.imports import Checked, check
from api.routes.sessions import session_of
from api.services.imports import import_session as write
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Session
from domain.errors import Forbidden, TooLarge
from storage.agents import Agents
from storage.database import Database
from storage.sessions import Sessions

MAX_DOCUMENT = 100 << 20
"""Bytes of a document: more than a request may have, for it goes to the disk as it comes."""
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"type": {"const": "perdure.session"}, "version": {"const": 1}},
                    "required": ["type", "version", "session", "agent", "events", "runs"],
                }
            }
        },
    }
}


@dataclass(frozen=True)
class Received:
    """A document that has come in whole and was found to be right."""

    file: BinaryIO
    checked: Checked


class ImportRoute(TransactionalRoute):
    """The document is written to the disk as it comes and checked before any lock is taken."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def within(request: Request) -> Response:
            with tempfile.TemporaryFile() as file:
                request.state.file = file
                return await handle(request)

        return within

    async def receive(self, request: Request) -> bytes:
        database: Database = request.app.state.database
        async with database.read() as connection:
            caller = await authenticate(request, connection)
        if "sessions:write" not in caller.scopes:
            raise Forbidden("This key lacks the scope sessions:write.")
        file: BinaryIO = request.state.file
        digest, size = hashlib.sha256(), 0
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > MAX_DOCUMENT:
            raise _too_large()
        async for piece in request.stream():
            size += len(piece)
            if size > MAX_DOCUMENT:
                raise _too_large()
            digest.update(piece)
            await asyncio.to_thread(file.write, piece)
        file.seek(0)
        request.state.received = Received(file, await asyncio.to_thread(check, file))
        return json.dumps([digest.hexdigest(), request.scope["query_string"].decode("latin-1")]).encode()


async def _received(request: Request) -> Received:
    return request.state.received


router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=ImportRoute, responses=PROBLEMS)


@router.post("/import", status_code=201, openapi_extra=_BODY)
async def import_session(
    caller: SessionsWrite,
    unit: UnitOfWork,
    service: TheService,
    received: Annotated[Received, Depends(_received)],
    response: Response,
    agent: Annotated[
        str | None, Query(description="An agent of yours, by id or name, in place of those in the document", max_length=256)
    ] = None,
) -> Session:
    """Make a session out of an exported one, as JSON, up to 100 MB. It is idle, and goes on with the next message."""
    chosen = None if agent is None else await Agents(unit.connection, caller.workspace_id).resolve(agent)
    row = await write(unit, service.catalog, received.checked, received.file, chosen)
    response.headers["Location"] = f"/v1/sessions/{row.id}"
    response.headers["Content-Location"] = f"/v1/sessions/{row.id}/events/stream"
    return await session_of(unit, await Sessions(unit.connection, caller.workspace_id).get(row.id))


def _too_large() -> TooLarge:
    return TooLarge(f"The document is over {MAX_DOCUMENT >> 20} MB.")
