"""/v1/sessions/{id}/export"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from api.auth import SessionsRead
from api.documents import agents_of, document, total_cost, total_usage
from api.download import attachment
from api.errors import PROBLEMS
from api.markdown import Transcript, inline
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from domain.agents import AgentVersion
from domain.clock import wire
from domain.events import ThreadCreated
from domain.files import file_name
from domain.multiagent import run_of_thread
from storage.copies import Tally
from storage.database import Database
from storage.journal import read
from storage.sessions import Sessions
from storage.tables import SessionRow

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=TransactionalRoute, responses=PROBLEMS)

PAGE = 500
_MAX_NAME = 100
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}
_EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The session, written page by page",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/markdown": {"schema": {"type": "string"}}},
    }
}


@router.get("/{session_id}/export", response_class=StreamingResponse, responses=_EXPORTS)
async def export_session(
    session_id: str,
    caller: SessionsRead,
    unit: UnitOfWork,
    service: TheService,
    format: Literal["json", "markdown"] = "json",
) -> StreamingResponse:
    """The session up to now: as JSON, complete and to be imported again, or as Markdown to be read. Without the files."""
    session = await Sessions(unit.connection, caller.workspace_id).get(session_id)
    agents = await agents_of(unit.connection, session)
    name = file_name(session.title or "").lstrip(".")[:_MAX_NAME].strip() or session.id
    if format == "json":
        pieces, media_type, ending = document(service.database, session, agents), "application/json", "json"
    else:
        pieces, media_type, ending = _markdown(service.database, session, agents), "text/markdown; charset=utf-8", "md"
    headers = {**_HEADERS, "Content-Disposition": attachment(f"{name}.{ending}")}
    return StreamingResponse(pieces, media_type=media_type, headers=headers)


async def _markdown(database: Database, session: SessionRow, agents: Sequence[AgentVersion]) -> AsyncGenerator[str]:
    agent = agents[0]
    yield f"# {inline(session.title or session.id)}\n\n"
    yield f"- Session: {session.id}\n- Agent: {inline(agent.config.name)}, version {agent.version}\n"
    yield f"- Model: {inline(agent.config.model.id)}\n- Begun: {wire(session.created_at)}\n\n"
    tally = Tally()
    threads: list[ThreadCreated] = []
    async for text in _thread(database, session, None, Transcript(), threads, tally):
        yield text
    for thread in threads:  # grows while they are read: sub-agents delegate, too
        title = "" if thread.title is None else f": {inline(thread.title)}"
        yield f"---\n\n## Sub-agent {inline(thread.agent_name)}{title}\n\nThread {thread.session_thread_id}\n\n"
        run_id = run_of_thread(thread.session_thread_id)
        async for text in _thread(database, session, run_id, Transcript(level=3), threads, tally):
            yield text
    usage, cost = total_usage(tally), total_cost(tally)
    price = "unknown" if cost is None else f"{cost.amount} {cost.currency}"
    yield f"---\n\nCost: {price} · {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out\n"


async def _thread(
    database: Database,
    session: SessionRow,
    run_id: str | None,
    transcript: Transcript,
    threads: list[ThreadCreated],
    tally: Tally,
) -> AsyncGenerator[str]:
    """The primary thread, or that of a sub-agent's run."""
    after, more = 0, True
    primary = () if run_id is None else None
    while more:
        async with database.read() as connection:
            page = await read(
                connection, session.id, after=after, before=session.last_seq + 1, run_id=run_id, primary=primary, limit=PAGE
            )
        for event in page:
            tally.take(event.payload, event.created_at, event.run_id, is_subagents=run_id is not None)
            for block in transcript.take(event):
                yield f"{block}\n\n"
        threads += transcript.threads
        transcript.threads.clear()
        more = len(page) == PAGE
        after = page[-1].seq if page else 0
    for block in transcript.end():
        yield f"{block}\n\n"
