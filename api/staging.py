"""A fork's files: copied before any lock is taken, so that neither the writer nor the request's time limit waits for a disk.

Files first, then the rows: what a crash leaves between the two no row names, and the daily tidying removes it.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Self

from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.auth import authenticate
from api.content import MessageContent
from api.state import Service
from api.transaction import TransactionalRoute
from domain.errors import CopyTooSlow, Invalid, NotFound, Pointer, ToolFailed, Unavailable
from domain.ids import new_id
from storage.copies import artifacts_until, point_before
from storage.database import Connection, Database
from storage.journal import read_one
from storage.sessions import Sessions
from storage.tables import SessionRow


class ForkCreate(BaseModel):
    """Where the copy ends: after an event, before one, or, with neither, at the end of the log."""

    model_config = ConfigDict(extra="forbid")

    after_event_id: str | None = None
    before_event_id: str | None = None
    """Of a message: before the agent read it, whatever it was doing when the message came."""
    content: MessageContent | None = None
    """A message to the fork, which a run takes up at once."""
    title: Annotated[str, Field(max_length=500)] | None = None
    """Left out: that of the session which is forked."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.after_event_id is not None and self.before_event_id is not None:
            raise ValueError("give `after_event_id` or `before_event_id`, not both")
        return self


@dataclass(frozen=True)
class Staged:
    """The new session's id, under which its files are there already."""

    session_id: str
    last_seq: int
    """Of the log that is copied."""
    artifacts: dict[str, str]
    """Old ids, and those under which the files are kept for the fork."""
    mounted: list[dict[str, str]]
    """The files that were given to the session and were in its directory before that was copied."""


async def _staged(request: Request) -> Staged | None:
    return getattr(request.state, "staged", None)


TheStaged = Annotated[Staged | None, Depends(_staged)]
"""None only where the body is refused."""


class ForkRoute(TransactionalRoute):
    """The files are copied first; where the request then fails, the copies are removed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def within(request: Request) -> Response:
            try:
                response = await handle(request)
            except CopyTooSlow:
                await _remove(request)
                raise
            except Unavailable:
                raise  # perhaps the fork is there all the same: what is not is tidied away
            except Exception:
                await _remove(request)
                raise
            if "Idempotent-Replayed" in response.headers:
                await _remove(request)
            return response

        return within

    async def receive(self, request: Request) -> bytes:
        body = await super().receive(request)
        try:
            wanted = ForkCreate.model_validate(json.loads(body))
        except (ValidationError, ValueError, RecursionError):
            return body  # the framework says what is wrong with it
        database: Database = request.app.state.database
        async with database.read() as connection:
            caller = await authenticate(request, connection)
            if "sessions:write" not in caller.scopes:
                return body
            source = await Sessions(connection, caller.workspace_id).get(request.path_params["session_id"])
            last_seq = await _last_seq(connection, source, wanted)
            artifacts = await artifacts_until(connection, source.id, last_seq)
        mounted = [] if source.resources_pending else source.resources or []
        staged = Staged(new_id("sesn"), last_seq, {id: new_id("artf") for id in artifacts}, mounted)
        request.state.staged = staged
        service: Service = request.app.state.service
        try:
            await asyncio.to_thread(_copy, service, caller.workspace_id, source.id, staged)
        except (ToolFailed, OSError) as error:
            await _remove(request)
            why = error.message if isinstance(error, ToolFailed) else str(error)
            raise Unavailable(f"The session's files cannot be copied: {why}.") from error
        return body


def _copy(service: Service, workspace_id: str, source_id: str, staged: Staged) -> None:
    service.files.copy_directory(workspace_id, source_id, staged.session_id)
    for old, new in staged.artifacts.items():
        service.files.link_stored(workspace_id, old, new)


async def _remove(request: Request) -> None:
    staged: Staged | None = getattr(request.state, "staged", None)
    if staged is None:
        return
    service: Service = request.app.state.service
    workspace_id: str = request.state.caller.workspace_id
    with suppress(OSError):
        await asyncio.to_thread(service.files.remove_stored, workspace_id, list(staged.artifacts.values()))
        await asyncio.to_thread(service.files.remove_directory, workspace_id, staged.session_id)


async def _last_seq(connection: Connection, source: SessionRow, wanted: ForkCreate) -> int:
    """Raises Invalid."""
    try:
        if wanted.after_event_id is not None:
            return (await read_one(connection, source.id, wanted.after_event_id)).seq
        if wanted.before_event_id is not None:
            return await point_before(connection, source.id, wanted.before_event_id)
    except NotFound as error:
        where = "/after_event_id" if wanted.after_event_id is not None else "/before_event_id"
        raise Invalid(error.message, Pointer(pointer=where, detail=error.message)) from error
    return source.last_seq
