"""/v1/sessions/{id}/fork"""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.auth import SessionsWrite
from api.content import message_of
from api.errors import PROBLEMS
from api.routes.sessions import session_of
from api.services.forks import fork
from api.services.runs import NewRun
from api.staging import ForkCreate, ForkRoute, TheStaged
from api.state import TheService
from api.transaction import UnitOfWork
from api.wire import Session, run_of
from domain.runs import Run
from storage.sessions import Sessions

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=ForkRoute, responses=PROBLEMS)


class Forked(BaseModel):
    session: Session
    event: dict[str, Any] | None
    """The message, where one was given …"""
    run: Run | None
    """… and the run that takes it up."""


@router.post("/{session_id}/fork", status_code=201)
async def fork_session(
    session_id: str,
    body: ForkCreate,
    caller: SessionsWrite,
    unit: UnitOfWork,
    service: TheService,
    staged: TheStaged,
    response: Response,
) -> Forked:
    """Copy the session up to an event into a new one, with its files; with `content`, go on there at once with that message."""
    assert staged is not None
    row = await fork(unit, session_id, staged, body.before_event_id, body.title)
    event, run = None, None
    if body.content is not None:
        stored, run = await service.runs.submit(unit, row.id, NewRun(message_of(body.content)))
        event = stored.wire()
    response.headers["Location"] = f"/v1/sessions/{row.id}"
    response.headers["Content-Location"] = f"/v1/sessions/{row.id}/events/stream"
    session = await session_of(unit, await Sessions(unit.connection, caller.workspace_id).get(row.id))
    return Forked(session=session, event=event, run=None if run is None else run_of(run, service.temporal_ui))
