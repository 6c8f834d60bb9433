"""/v1/sessions/{id}: its queue, and pause, resume and interrupt"""

from typing import Annotated, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.auth import SessionsRead, SessionsWrite
from api.content import MessageContent, message_of
from api.errors import PROBLEMS
from api.pages import List, listed
from api.routes.sessions import session_of
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Session, Time
from domain.payload import UserContent
from storage.queues import Queues, Waiting
from storage.sessions import Sessions

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"], route_class=TransactionalRoute, responses=PROBLEMS)


class QueueItem(BaseModel):
    """A message that waits for its turn. Of several that the same turn will read each is an item."""

    type: Literal["queue_item"] = "queue_item"
    event_id: str
    run_id: str
    position: int
    """The turn's: 1 is next."""
    content: list[UserContent]
    created_at: Time

    @classmethod
    def of(cls, waiting: Waiting) -> "QueueItem":
        return cls(
            event_id=waiting.event_id,
            run_id=waiting.run.id,
            position=waiting.place,
            content=list(waiting.content),
            created_at=waiting.created_at,
        )


class QueueItemUpdate(BaseModel):
    """Members left out stay."""

    model_config = ConfigDict(extra="forbid")

    content: MessageContent | None = None
    position: Annotated[int, Field(ge=1, le=2_000_000_000, strict=True)] | None = None
    """1 is next; beyond the end is the end."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.content is None and self.position is None:
            raise ValueError("give `content` or `position`")
        return self


class QueueItemDeleted(BaseModel):
    event_id: str
    type: Literal["queue_item_deleted"] = "queue_item_deleted"


class SessionPause(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mode: Literal["step", "now"] = "step"


@router.get("/queue")
async def list_queue(session_id: str, caller: SessionsRead, unit: UnitOfWork) -> List[QueueItem]:
    """The messages that wait for their turn, the next one first."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    waiting = await Queues(unit.connection).shown(session_id)
    return listed([QueueItem.of(found) for found in waiting], None)


@router.patch("/queue/{event_id}")
async def edit_queued(
    session_id: str, event_id: str, body: QueueItemUpdate, caller: SessionsWrite, unit: UnitOfWork, service: TheService
) -> QueueItem:
    """Change what a message says or its turn's place, until that starts: then 409 `already_started`."""
    content = None if body.content is None else message_of(body.content)
    return QueueItem.of(await service.sessions.edit(unit, session_id, event_id, content, body.position))


@router.delete("/queue/{event_id}")
async def remove_queued(
    session_id: str, event_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService
) -> QueueItemDeleted:
    """Take a message out of the queue, until its turn starts: then 409 `already_started`. Its run is cancelled."""
    await service.sessions.remove(unit, session_id, event_id)
    return QueueItemDeleted(event_id=event_id)


@router.post("/pause", status_code=202)
async def pause_session(
    session_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService, body: SessionPause | None = None
) -> Session:
    """Take messages into the queue and start nothing; the running turn is paused as `POST /v1/runs/{id}/pause` does."""
    await service.sessions.pause(unit, session_id, (body or SessionPause()).mode)
    return await _session(unit, session_id)


@router.post("/resume", status_code=202)
async def resume_session(session_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService) -> Session:
    """Go on with the turn that was paused, or start the next one."""
    await service.sessions.resume(unit, session_id)
    return await _session(unit, session_id)


@router.post("/interrupt", status_code=202)
async def interrupt_session(session_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService) -> Session:
    """End the running turn and keep what it has written; the next one starts when it has ended. The event `user.interrupt`."""
    await service.sessions.interrupt(unit, session_id)
    return await _session(unit, session_id)


async def _session(unit: UnitOfWork, session_id: str) -> Session:
    return await session_of(unit, await Sessions(unit.connection, unit.caller.workspace_id).get(session_id))
