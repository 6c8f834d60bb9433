"""/v1/sessions/{id}/client_tokens: what the page of a user gets instead of a key."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.auth import SessionsWrite
from api.errors import PROBLEMS
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Time
from domain.errors import Archived
from domain.keys import Grant
from storage.client_tokens import ClientTokens
from storage.sessions import Sessions

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=TransactionalRoute, responses=PROBLEMS)


class ClientTokenCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grants: Annotated[list[Grant], Field(max_length=10)] = []
    """What the token may do beside reading, writing, answering questions and stopping: `approvals`: decide whether tools may
    run; `tool_results`: give the results of custom tools."""


class ClientToken(BaseModel):
    type: Literal["client_token"] = "client_token"
    id: str
    session_id: str
    grants: list[Grant]
    token: str | None
    """Shown in this answer and never again."""
    created_at: Time
    expires_at: Time


@router.post("/{session_id}/client_tokens", status_code=201)
async def create_client_token(
    session_id: str, caller: SessionsWrite, unit: UnitOfWork, body: ClientTokenCreate | None = None
) -> ClientToken:
    """Make a token with which a browser can show and continue this session, and nothing else, for 60 minutes. It ends earlier
    with the key that made it, and when the session is archived."""
    session = await Sessions(unit.connection, caller.workspace_id).get(session_id, lock=True)
    if session.archived_at is not None:
        raise Archived(f"Session {session_id} is archived.")
    grants = set(body.grants) if body is not None else set[Grant]()
    token, row = await ClientTokens(unit.connection).issue(session, caller.key_id, grants)
    unit.secret = "token"
    return ClientToken.model_validate({**row.model_dump(), "token": token})
