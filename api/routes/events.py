"""/v1/sessions/{id}/events and /items"""

from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from api.auth import SessionsRead, SessionsWrite
from api.content import TextBlock, content_of
from api.errors import PROBLEMS
from api.frames import sdk_types
from api.pages import CreatedAt, Cursor, EventLimit, List, Order, listed, seq_cursor, seq_of
from api.services.runs import NewRun
from api.sse import is_sdk
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from domain.clock import wire
from domain.events import (
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    Event,
    UserMessage,
)
from storage.journal import read
from storage.sessions import Sessions

USES = ("agent.tool_use", "agent.mcp_tool_use")
RESULTS = ("agent.tool_result", "agent.mcp_tool_result")
Result: TypeAlias = AgentToolResult | AgentMcpToolResult

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["events"], route_class=TransactionalRoute, responses=PROBLEMS)

Types = Annotated[list[str] | None, Query(description="Only these event types", max_length=50)]


class UserMessageEvent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["user.message"]
    content: Annotated[list[TextBlock], Field(min_length=1, max_length=100)]
    client_event_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class EventsCreate(BaseModel):
    """Of the events that people send, `user.message` is taken now; others are refused until they exist."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[UserMessageEvent], Field(min_length=1, max_length=20)]


class EventsAccepted(BaseModel):
    data: list[dict[str, Any]]


@router.post("/events", status_code=200)
async def send_events(
    session_id: str, body: EventsCreate, caller: SessionsWrite, unit: UnitOfWork, service: TheService
) -> EventsAccepted:
    """Append events; each message becomes a turn, in order."""
    sent: list[dict[str, Any]] = []
    for event in body.events:
        new = NewRun(content_of(event.content), client_event_id=event.client_event_id)
        stored, _ = await service.runs.submit(unit, session_id, new)
        sent.append(stored.wire())
    return EventsAccepted(data=sent)


@router.get("/events")
async def list_events(
    request: Request,
    session_id: str,
    caller: SessionsRead,
    unit: UnitOfWork,
    created: CreatedAt,
    limit: EventLimit = 20,
    page: Cursor = None,
    order: Order = "asc",
    types: Types = None,
    types_brackets: Annotated[list[str] | None, Query(alias="types[]", include_in_schema=False)] = None,
) -> List[dict[str, Any]]:
    """The session's log."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    wanted = types if types is not None else types_brackets
    if is_sdk(request):
        wanted = sorted(sdk_types(wanted))
    place = None if page is None else seq_of(page)
    descending = order == "desc"
    events = await read(
        unit.connection,
        session_id,
        after=0 if descending or place is None else place,
        before=place if descending else None,
        limit=limit + 1,
        types=wanted,
        created_after=created.after,
        created_before=created.before,
        descending=descending,
    )
    following = seq_cursor(events[limit - 1].seq) if len(events) > limit else None
    return listed([event.wire() for event in events[:limit]], following)


@router.get("/items")
async def list_items(
    session_id: str, caller: SessionsRead, unit: UnitOfWork, limit: EventLimit = 100, page: Cursor = None
) -> List[dict[str, Any]]:
    """The transcript folded for reading: messages, reasoning, and tool uses with their results, in order."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    after = 0 if page is None else seq_of(page)
    types = ("user.message", "agent.message", "agent.thinking", *USES)
    events = await read(unit.connection, session_id, after=after, types=types, limit=limit + 1)
    shown = events[:limit]
    results = await _results(unit, session_id, shown)
    following = seq_cursor(shown[-1].seq) if len(events) > limit else None
    return listed([_item(event, results) for event in shown], following)


async def _results(unit: UnitOfWork, session_id: str, events: list[Event]) -> dict[str, Result]:
    uses = {event.id for event in events if event.type in USES}
    found: dict[str, Result] = {}
    after = events[0].seq if events else 0
    while uses - found.keys():
        page = await read(unit.connection, session_id, after=after, types=RESULTS, limit=1000)
        for event in page:
            match event.payload:
                case AgentToolResult(tool_use_id=use) | AgentMcpToolResult(mcp_tool_use_id=use) if use in uses:
                    found[use] = event.payload
                case _:
                    pass
        if len(page) < 1000:
            break
        after = page[-1].seq
    return found


def _item(event: Event, results: dict[str, Result]) -> dict[str, Any]:
    item: dict[str, Any] = {"id": event.id, "seq": event.seq, "run_id": event.run_id, "created_at": wire(event.created_at)}
    match event.payload:
        case UserMessage(content=content):
            item |= {"type": "message", "role": "user", "content": [c.model_dump() for c in content]}
        case AgentMessage(content=content, interrupted=interrupted):
            item |= {"type": "message", "role": "agent", "content": [c.model_dump() for c in content]}
            item["interrupted"] = interrupted
        case AgentThinking(text=text):
            item |= {"type": "thinking", "text": text}
        case AgentToolUse(name=name, input=arguments):
            item |= {"type": "tool_use", "name": name, "input": arguments, "result": _shown(results.get(event.id))}
        case AgentMcpToolUse(mcp_server_name=server, name=name, input=arguments):
            item |= {"type": "tool_use", "mcp_server_name": server, "name": name, "input": arguments}
            item["result"] = _shown(results.get(event.id))
        case _:
            pass
    return item


def _shown(result: Result | None) -> dict[str, Any] | None:
    return None if result is None else result.model_dump(mode="json", exclude={"type", "tool_use_id", "mcp_tool_use_id"})
