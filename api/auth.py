"""Who is calling, and what they may do."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from api.client_access import admit
from domain.errors import Forbidden, Invalid, Unauthenticated
from domain.keys import CLIENT_TOKEN, Principal, Scope
from storage.client_tokens import ClientTokens
from storage.database import Connection
from storage.keys import Keys

# For the OpenAPI document only; `authenticate` reads the headers itself.
_bearer = HTTPBearer(auto_error=False, description="An API key")
_header = APIKeyHeader(name="x-api-key", auto_error=False, description="An API key")


_NO_KEY = "Send the API key as `Authorization: Bearer KEY` or `x-api-key: KEY`."
_KEY_IN_ADDRESS = (
    "An API key must not stand in an address, which logs and histories keep: revoke it, and send the new one as a header. "
    "`access_token` takes client tokens only, at streams."
)


async def authenticate(request: Request, connection: Connection, *, in_address: str | None = None) -> Principal:
    """`in_address`: the client token of a request that can have no headers. Raises Unauthenticated, for a client token what
    `client_access` says, and Invalid for an address that no database can look up."""
    if "\x00" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise Invalid("The address contains a NUL character.")
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        key = request.headers.get("x-api-key", "")
    key = key or in_address or ""
    if not key or (key == in_address and not key.startswith(CLIENT_TOKEN)):
        raise Unauthenticated(_KEY_IN_ADDRESS if "access_token" in request.query_params else _NO_KEY)
    if key.startswith(CLIENT_TOKEN):
        caller = await ClientTokens(connection).authenticate(key)
        await admit(request, connection, caller)
    else:
        caller = await Keys(connection).authenticate(key)
    request.state.caller = caller
    return caller


def needs(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    # A coroutine, as every dependency here: others are run in a thread, and to go there and back takes longer than they do.
    async def check(
        request: Request, _bearer: Annotated[object, Security(_bearer)], _header: Annotated[object, Security(_header)]
    ) -> Principal:
        caller: Principal = request.state.caller
        if scope not in caller.scopes:
            raise Forbidden(f"This key lacks the scope {scope}.")
        return caller

    return check


AgentsRead = Annotated[Principal, Depends(needs("agents:read"))]
AgentsWrite = Annotated[Principal, Depends(needs("agents:write"))]
SessionsRead = Annotated[Principal, Depends(needs("sessions:read"))]
SessionsWrite = Annotated[Principal, Depends(needs("sessions:write"))]
RunsRead = Annotated[Principal, Depends(needs("runs:read"))]
RunsWrite = Annotated[Principal, Depends(needs("runs:write"))]
KeysWrite = Annotated[Principal, Depends(needs("keys:write"))]
