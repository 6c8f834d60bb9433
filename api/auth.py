"""Who is calling, and what they may do."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from domain.errors import Forbidden, Invalid, Unauthenticated
from domain.keys import Principal, Scope
from storage.database import Connection
from storage.keys import Keys

# For the OpenAPI document only; `authenticate` reads the headers itself.
_bearer = HTTPBearer(auto_error=False, description="An API key")
_header = APIKeyHeader(name="x-api-key", auto_error=False, description="An API key")


async def authenticate(request: Request, connection: Connection) -> Principal:
    """Raises Unauthenticated, and Invalid for an address that no database can look up."""
    if "\x00" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise Invalid("The address contains a NUL character.")
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        key = request.headers.get("x-api-key", "")
    if not key:
        raise Unauthenticated("Send the API key as `Authorization: Bearer KEY` or `x-api-key: KEY`.")
    caller = await Keys(connection).authenticate(key)
    request.state.caller = caller
    return caller


def needs(scope: Scope) -> Callable[..., Principal]:
    def check(
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
