"""Workspaces and API keys. Keys are stored as hashes and found by their prefix."""

import hmac

from sqlalchemy import bindparam, select, text, update
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound, Unauthenticated
from domain.ids import new_id
from domain.keys import PREFIX_CHARS, Principal, key_sha256
from storage.database import Connection
from storage.rows import Page, add, fetch_one, fetch_only, page
from storage.tables import ApiKeyRow, UtcDateTime, WorkspaceRow

DEFAULT_WORKSPACE = "wrkspc_default"

_BY_PREFIX = select(ApiKeyRow).where(col(ApiKeyRow.prefix) == bindparam("prefix"))

_DEFAULT_WORKSPACE = text(
    "INSERT INTO workspaces (id, name, created_at) VALUES (:id, :name, :created_at) ON CONFLICT DO NOTHING"
).bindparams(bindparam("created_at", type_=UtcDateTime()))


class Keys:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ensure_default_workspace(self) -> bool:
        """Create the default workspace; True when it was not there before. Of two processes at once, the second waits."""
        values = {"id": DEFAULT_WORKSPACE, "name": "default", "created_at": now()}
        return (await self._connection.execute(_DEFAULT_WORKSPACE, values)).rowcount == 1

    async def create_workspace(self, name: str) -> str:
        row = WorkspaceRow(id=new_id("wrkspc"), name=name, created_at=now())
        await add(self._connection, row)
        return row.id

    async def add(self, workspace_id: str, name: str, key: str, scopes: tuple[str, ...]) -> ApiKeyRow:
        """Store the hash of `key`, which is shown to its owner once and kept nowhere."""
        row = ApiKeyRow(
            id=new_id("key"),
            workspace_id=workspace_id,
            name=name,
            prefix=key[:PREFIX_CHARS],
            sha256=key_sha256(key),
            scopes=list(scopes),
            created_at=now(),
        )
        await add(self._connection, row)
        return row

    async def authenticate(self, key: str) -> Principal:
        """Raises Unauthenticated for a key that is unknown, wrong or revoked."""
        row = await fetch_only(self._connection, ApiKeyRow, _BY_PREFIX, {"prefix": key[:PREFIX_CHARS]})
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.sha256, key_sha256(key)):
            raise Unauthenticated("The API key is unknown or revoked. `perdure keys create` makes a new one.")
        return Principal(workspace_id=row.workspace_id, key_id=row.id, scopes=frozenset(row.scopes))

    async def find(self, workspace_id: str, *, limit: int, cursor: str | None, descending: bool) -> Page[ApiKeyRow]:
        return await page(
            self._connection,
            ApiKeyRow,
            select(ApiKeyRow).where(col(ApiKeyRow.workspace_id) == workspace_id),
            at=ApiKeyRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=ApiKeyRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def revoke(self, workspace_id: str, key_id: str) -> None:
        """Raises NotFound. Revoking again changes nothing."""
        mine = (col(ApiKeyRow.id) == key_id, col(ApiKeyRow.workspace_id) == workspace_id)
        if await fetch_one(self._connection, ApiKeyRow, select(ApiKeyRow).where(*mine)) is None:
            raise NotFound(f"No key {key_id}.")
        await self._connection.execute(
            update(ApiKeyRow).where(*mine, col(ApiKeyRow.revoked_at).is_(None)).values(revoked_at=now())
        )
