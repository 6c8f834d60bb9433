"""What a browser's token may do, in its own session. What is not named here, it may not: new operations are closed to it."""

from fastapi import Request

from domain.errors import Forbidden, NotFound
from domain.keys import Grant, Principal
from storage.approvals import Approvals
from storage.artifacts import Artifacts
from storage.database import Connection
from storage.runs import Runs

OPEN: dict[str, Grant | None] = {
    "GET /v1/sessions/{session_id}": None,
    "GET /v1/sessions/{session_id}/events": None,
    "POST /v1/sessions/{session_id}/events": None,
    "GET /v1/sessions/{session_id}/events/stream": None,
    "GET /v1/sessions/{session_id}/items": None,
    "POST /v1/sessions/{session_id}/messages": None,
    "POST /v1/sessions/{session_id}/interrupt": None,
    "GET /v1/sessions/{session_id}/queue": None,
    "PATCH /v1/sessions/{session_id}/queue/{event_id}": None,
    "DELETE /v1/sessions/{session_id}/queue/{event_id}": None,
    "GET /v1/sessions/{session_id}/threads": None,
    "GET /v1/sessions/{session_id}/threads/{thread_id}": None,
    "GET /v1/sessions/{session_id}/threads/{thread_id}/events": None,
    "GET /v1/sessions/{session_id}/threads/{thread_id}/stream": None,
    "GET /v1/sessions/{session_id}/artifacts": None,
    "GET /v1/artifacts/{artifact_id}/content": None,
    "GET /v1/runs/{run_id}": None,
    "GET /v1/runs/{run_id}/events": None,
    "GET /v1/runs/{run_id}/events/stream": None,
    "GET /v1/runs/{run_id}/wait": None,
    "POST /v1/runs/{run_id}/cancel": None,
    "POST /v1/runs/{run_id}/input": None,
    "GET /v1/approvals/{approval_id}": "approvals",
    "POST /v1/approvals/{approval_id}/decision": "approvals",
}
"""By method and route; with what the token must have been granted for it."""


HIDDEN = frozenset({"system.message"})
"""Types of events that whoever operates the agent tells it alone, as its instructions."""


async def admit(request: Request, connection: Connection, token: Principal) -> None:
    """Raises Forbidden for an operation that is closed, NotFound for what is not in the token's session."""
    operation = f"{request.method} {request.scope['route'].path}"
    if operation not in OPEN:
        raise Forbidden("A client token is for one session only, and not for this. The backend of your page has the key.")
    if await _session_of(request, connection, token) != token.session_id:
        raise NotFound("There is no such thing in the session that this client token is for.")
    need(token, OPEN[operation])


async def _session_of(request: Request, connection: Connection, token: Principal) -> str:
    match request.path_params:
        case {"session_id": session_id}:
            return session_id
        case {"run_id": run_id}:
            return (await Runs(connection).get(run_id, token.workspace_id)).session_id
        case {"approval_id": approval_id}:
            return (await Approvals(connection).get(approval_id, token.workspace_id)).session_id
        case {"artifact_id": artifact_id}:
            return (await Artifacts(connection, token.workspace_id).get(artifact_id)).session_id
        case other:
            raise AssertionError(f"an open operation says of which session it is: {other}")


def need(caller: Principal, grant: Grant | None) -> None:
    """Raises Forbidden for a client token without the grant. Keys have their scopes instead."""
    if caller.session_id is not None and grant is not None and grant not in caller.grants:
        raise Forbidden(f"This client token was made without {grant!r} among its `grants`.")


def need_key(caller: Principal) -> None:
    """Raises Forbidden for a client token, whatever its grants."""
    if caller.session_id is not None:
        raise Forbidden("Only a key may send `system.message`: have the backend of your page send it.")


def hidden_from(caller: Principal) -> frozenset[str]:
    return frozenset() if caller.session_id is None else HIDDEN
