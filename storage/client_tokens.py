"""Client tokens: what browsers have instead of a key. Kept as keys are, by prefix and hash."""

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import delete, select, union_all
from sqlmodel import col

from domain.clock import now
from domain.errors import TokenExpired, Unauthenticated
from domain.ids import new_id
from domain.keys import (
    CLIENT_SCOPES,
    CLIENT_TOKEN_LASTS,
    PREFIX_CHARS,
    Grant,
    Principal,
    key_sha256,
    new_client_token,
)
from storage.database import Connection
from storage.rows import add, fetch_one
from storage.tables import ApiKeyRow, ClientTokenRow, SessionRow


class ClientTokens:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def issue(self, session: SessionRow, key_id: str, grants: Iterable[Grant]) -> tuple[str, ClientTokenRow]:
        """A fresh token, which is kept nowhere, and its row."""
        token = new_client_token()
        moment = now()
        row = ClientTokenRow(
            id=new_id("ctok"),
            workspace_id=session.workspace_id,
            session_id=session.id,
            key_id=key_id,
            prefix=token[:PREFIX_CHARS],
            sha256=key_sha256(token),
            grants=sorted(grants),
            created_at=moment,
            expires_at=moment + CLIENT_TOKEN_LASTS,
        )
        await add(self._connection, row)
        return token, row

    async def authenticate(self, token: str) -> Principal:
        """It may never do more than the key that asked for it.

        Raises TokenExpired, and Unauthenticated for one that is unknown, or whose key is revoked or session archived.
        """
        found = await fetch_one(
            self._connection, ClientTokenRow, select(ClientTokenRow).where(col(ClientTokenRow.prefix) == token[:PREFIX_CHARS])
        )
        if found is None or not hmac.compare_digest(found.sha256, key_sha256(token)):
            raise Unauthenticated("The client token is unknown. Get another one from the backend of your page.")
        if found.expires_at <= now():
            raise TokenExpired("The client token has expired. Get another one from the backend of your page.")
        statement = select(col(ApiKeyRow.scopes)).select_from(ClientTokenRow).where(col(ClientTokenRow.id) == found.id, *_GOOD)
        scopes = (await self._connection.execute(statement)).scalar_one_or_none()
        if scopes is None:
            raise Unauthenticated("The client token is no longer good: its key was revoked, or its session archived.")
        return Principal(
            workspace_id=found.workspace_id,
            key_id=found.id,
            scopes=CLIENT_SCOPES & frozenset(scopes),
            session_id=found.session_id,
            grants=frozenset(found.grants),
            expires_at=found.expires_at,
        )


_GOOD = (
    col(ApiKeyRow.id) == col(ClientTokenRow.key_id),
    col(ApiKeyRow.revoked_at).is_(None),
    col(SessionRow.id) == col(ClientTokenRow.session_id),
    col(SessionRow.archived_at).is_(None),
)
"""Of a token, as long as its time is not over."""


async def still_good(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of the keys and client tokens that were not revoked, and whose session was not archived or deleted, meanwhile."""
    keys = select(col(ApiKeyRow.id)).where(col(ApiKeyRow.id).in_(ids), col(ApiKeyRow.revoked_at).is_(None))
    tokens = select(col(ClientTokenRow.id)).where(col(ClientTokenRow.id).in_(ids), *_GOOD)
    return set((await connection.execute(union_all(keys, tokens))).scalars())


async def remove_expired(connection: Connection, before: datetime) -> None:
    """Tokens that expired before that time: for a while, a late page is still told what is wrong."""
    await connection.execute(delete(ClientTokenRow).where(col(ClientTokenRow.expires_at) < before))
