"""The streams, and the wait: requests that last, and so must hold no database connection."""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sse_starlette import EventSourceResponse

from api.auth import RunsRead, SessionsRead, authenticate
from api.errors import PROBLEMS
from api.routes.events import Types
from api.sse import End, is_sdk, start_of, stream, viewer
from api.state import Service, TheService
from api.tail import Viewer
from api.wire import run_of
from domain.events import RUN_OVER_TYPES
from domain.keys import Principal
from domain.multiagent import thread_of
from domain.runs import Run, RunStatus
from storage.journal import last_of_type
from storage.runs import Runs
from storage.sessions import Sessions
from storage.tables import RunRow


async def authenticated(
    request: Request,
    # Without a limit: where a parameter is refused, the framework asks for the caller all the same, and there would be none.
    access_token: Annotated[str | None, Query(description="A client token, where no header can be sent")] = None,
) -> Principal:
    service: Service = request.app.state.service
    async with service.database.read() as connection:
        return await authenticate(request, connection, in_address=access_token)


SSE: dict[int | str, dict[str, Any]] = {**PROBLEMS, 200: {"content": {"text/event-stream": {}}, "description": "Events"}}
router = APIRouter(tags=["streams"], dependencies=[Depends(authenticated)])

After = Annotated[
    str | None, Query(description="Begin behind the frame of this id, which may be a seq; 0 is everything", max_length=4000)
]
Deltas = Annotated[list[str] | None, Query(alias="event_deltas[]", description="Event types to preview")]
DeltasPlain = Annotated[list[str] | None, Query(alias="event_deltas", include_in_schema=False)]


@router.get("/v1/sessions/{session_id}/events/stream", response_class=EventSourceResponse, responses=SSE)
async def stream_session(
    request: Request,
    session_id: str,
    caller: SessionsRead,
    service: TheService,
    after: After = None,
    types: Types = None,
    deltas: Deltas = None,
    deltas_plain: DeltasPlain = None,
) -> EventSourceResponse:
    """Follow a session. Begins at `Last-Event-ID`, else behind `after`, else with what comes now."""
    async with service.database.read() as connection:
        last_seq = (await Sessions(connection, caller.workspace_id).get(session_id)).last_seq
    start = start_of(request, after, last_seq, default=last_seq)
    shown = deltas if deltas is not None else deltas_plain
    wanted = viewer(request, start, run_id=None, types=types, deltas=shown, primary=is_sdk(request))
    return stream(request, service, session_id, wanted, last_seq)


@router.get("/v1/sessions/{session_id}/threads/{thread_id}/stream", response_class=EventSourceResponse, responses=SSE)
async def stream_thread(
    request: Request,
    session_id: str,
    thread_id: str,
    caller: SessionsRead,
    service: TheService,
    after: After = None,
    types: Types = None,
    deltas: Deltas = None,
    deltas_plain: DeltasPlain = None,
) -> EventSourceResponse:
    """Follow one thread of a session. Begins where a session's stream does."""
    is_primary = thread_id == thread_of(session_id)
    async with service.database.read() as connection:
        last_seq = (await Sessions(connection, caller.workspace_id).get(session_id)).last_seq
        run_id = None if is_primary else (await Runs(connection).on_thread(session_id, thread_id)).id
    start = start_of(request, after, last_seq, default=last_seq)
    shown = deltas if deltas is not None else deltas_plain
    wanted = viewer(request, start, run_id=run_id, types=types, deltas=shown, primary=is_primary)
    return stream(request, service, session_id, wanted, last_seq)


@router.get("/v1/runs/{run_id}/events/stream", response_class=EventSourceResponse, responses=SSE)
async def stream_run(
    request: Request,
    run_id: str,
    caller: RunsRead,
    service: TheService,
    after: After = None,
    types: Types = None,
    deltas: Deltas = None,
    deltas_plain: DeltasPlain = None,
) -> EventSourceResponse:
    """Follow a run from its first event, or from `Last-Event-ID` or `after`, to its last; then `event: done`."""
    row, last_seq, end = await _look(service, caller, run_id)
    start = start_of(request, after, last_seq, default=0)
    wanted = viewer(request, start, run_id=run_id, types=types, deltas=deltas if deltas is not None else deltas_plain)
    return stream(request, service, row.session_id, wanted, last_seq, end)


@router.get("/v1/runs/{run_id}/wait", responses=PROBLEMS)
async def wait_for_run(
    run_id: str,
    caller: RunsRead,
    service: TheService,
    timeout_seconds: Annotated[float, Query(ge=0, le=300)] = 30,
) -> Run:
    """Answer when the run is over, or as it is when the time is up."""
    row, last_seq, end = await _look(service, caller, run_id)
    if end.seq is None:
        waiting = Viewer(after=end.after, run_id=run_id, types=RUN_OVER_TYPES, previews=frozenset())
        try:
            async with asyncio.timeout(timeout_seconds):
                async with aclosing(service.tails.follow(row.session_id, waiting, last_seq)) as frames:
                    async for frame in frames:
                        if frame is not None:
                            break
        except TimeoutError:
            pass
        row, _, _ = await _look(service, caller, run_id)
    return run_of(row, service.temporal_ui)


async def _look(service: Service, caller: Principal, run_id: str) -> tuple[RunRow, int, End]:
    """The run, its log's end, and what ends its newest attempt."""
    async with service.database.read() as connection:
        row = await Runs(connection).get(run_id, caller.workspace_id)
        session = await Sessions(connection, caller.workspace_id).get(row.session_id)
        queued = await last_of_type(connection, row.session_id, run_id, "run.queued")
        over = None
        if RunStatus(row.status).over:
            over = await last_of_type(connection, row.session_id, run_id, f"run.{row.status}")
    return row, session.last_seq, End(queued, over, {"run_id": run_id}, row.status)
