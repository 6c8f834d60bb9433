"""/v1/api_keys"""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.auth import KeysWrite
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Order, listed
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Key
from domain.errors import Forbidden
from domain.keys import SCOPES, Scope, new_key
from storage.keys import Keys

router = APIRouter(prefix="/v1/api_keys", tags=["keys"], route_class=TransactionalRoute, responses=PROBLEMS)


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scopes: tuple[Scope, ...] | None = None
    """Default: all that the calling key has."""


@router.post("", status_code=201)
async def create_key(body: KeyCreate, caller: KeysWrite, unit: UnitOfWork) -> Key:
    """Make a key. It is shown in this answer and never again. It cannot be given a scope that the calling key lacks."""
    wanted = body.scopes if body.scopes is not None else tuple(scope for scope in SCOPES if scope in caller.scopes)
    if lacking := set(wanted) - caller.scopes:
        raise Forbidden(f"This key lacks {', '.join(sorted(lacking))} and cannot give it away.")
    key = new_key()
    unit.secret = "key"
    return Key.of(await Keys(unit.connection).add(caller.workspace_id, body.name, key, wanted), key)


@router.get("")
async def list_keys(
    caller: KeysWrite, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None, order: Order = "desc"
) -> List[Key]:
    """The workspace's keys, revoked ones too, the newest first."""
    found = await Keys(unit.connection).find(caller.workspace_id, limit=limit, cursor=page, descending=order == "desc")
    return listed([Key.of(row) for row in found.rows], found.next_page)


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: str, caller: KeysWrite, unit: UnitOfWork) -> None:
    """Requests with it are refused from now on, and its open streams end within seconds."""
    await Keys(unit.connection).revoke(caller.workspace_id, key_id)
