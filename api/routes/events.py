"""/v1/sessions/{id}/events and /items"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from api.auth import SessionsRead, SessionsWrite
from api.client_access import hidden_from, need, need_key
from api.content import Blocks, Content, TextBlock, content_of, message_of
from api.errors import PROBLEMS, QUEUE_FULL
from api.frames import for_sdk, sdk_types
from api.pages import CreatedAt, Cursor, EventLimit, List, Order, listed, seq_cursor, seq_of
from api.services.runs import NewRun
from api.services.system_messages import accompany
from api.sse import is_sdk
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from domain.approvals import Decision
from domain.clock import wire
from domain.errors import Invalid, Pointer
from domain.events import (
    RUN_OVER_TYPES,
    AgentCustomToolUse,
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentMessage,
    AgentThinking,
    AgentToolResult,
    AgentToolUse,
    ContextCompacted,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunTerminated,
    SystemMessage,
    UserCustomToolResult,
    UserMessage,
)
from domain.multiagent import thread_of
from domain.sdk_events import CROSS_POSTED
from storage.journal import read
from storage.sessions import Sessions

USES = ("agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use")
RESULTS = ("agent.tool_result", "agent.mcp_tool_result", "user.custom_tool_result")
RESULTS_PAGE = 200
Result: TypeAlias = AgentToolResult | AgentMcpToolResult | UserCustomToolResult

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["events"], route_class=TransactionalRoute, responses=PROBLEMS)

Types = Annotated[list[str] | None, Query(description="Only these event types", max_length=50)]


class UserMessageEvent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["user.message"]
    content: Blocks
    client_event_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class ToolConfirmationEvent(BaseModel):
    """As in the `anthropic` package; `input` and `remember` are Perdure's, see `POST /v1/approvals/{id}/decision`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["user.tool_confirmation"]
    tool_use_id: str
    result: Literal["allow", "deny"]
    deny_message: Annotated[str, Field(max_length=10_000)] | None = None
    input: dict[str, JsonValue] | None = None
    remember: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.result == "allow" and self.deny_message is not None:
            raise ValueError("`deny_message` goes with `deny`")
        if self.result == "deny" and self.input is not None:
            raise ValueError("`input` goes with `allow`")
        return self


class CustomToolResultEvent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["user.custom_tool_result"]
    custom_tool_use_id: str
    content: Annotated[list[TextBlock], Field(max_length=100)] = []
    is_error: Annotated[bool, Field(strict=True)] | None = None


class AnswerEvent(BaseModel):
    """The answer to `agent.question`: text, or JSON as text where the question has an `answer_schema`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["user.answer"]
    tool_use_id: str
    content: Content


class InterruptEvent(BaseModel):
    """Ends the running turn. A message right behind it is the next one, ahead of those that wait."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["user.interrupt"]
    session_thread_id: str | None = None
    """Only what the sub-agent on that thread does."""


class SystemMessageEvent(BaseModel):
    """Context of yours for the model, for this turn and those to come: the last event of the request, right behind the
    `user.message` or `user.custom_tool_result` that it goes with. Keys only."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["system.message"]
    content: Annotated[list[TextBlock], Field(min_length=1, max_length=100)]


FromPeople: TypeAlias = UserMessageEvent | InterruptEvent | ToolConfirmationEvent | CustomToolResultEvent | AnswerEvent
PostedEvent = Annotated[FromPeople | SystemMessageEvent, Field(discriminator="type")]


class EventsCreate(BaseModel):
    """What people say: messages, and answers to what a run waits for. All of them are taken, or none."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[PostedEvent], Field(min_length=1, max_length=20)]


class EventsAccepted(BaseModel):
    data: list[dict[str, Any]]


@router.post("/events", status_code=200, responses=QUEUE_FULL)
async def send_events(
    session_id: str, body: EventsCreate, caller: SessionsWrite, unit: UnitOfWork, service: TheService
) -> EventsAccepted:
    """Append events, in order. A message becomes a turn; a confirmation, a result or an answer goes to the run that waits."""
    redirected = [False, *(_ends_the_turn(session_id, event) for event in body.events)]
    _check_places(body.events, unit)
    sent: list[Event] = []
    for at, (event, redirects) in enumerate(zip(body.events, redirected, strict=False)):
        if isinstance(event, SystemMessageEvent):
            sent.append(await accompany(unit, sent[-1], content_of(event.content)))
        else:
            sent.append(await _send(session_id, event, f"/events/{at}", unit, service, redirects))
    return EventsAccepted(data=[event.wire() for event in sent])


def _ends_the_turn(session_id: str, event: FromPeople | SystemMessageEvent) -> bool:
    return isinstance(event, InterruptEvent) and event.session_thread_id in (None, thread_of(session_id))


def _check_places(events: Sequence[FromPeople | SystemMessageEvent], unit: UnitOfWork) -> None:
    """The rules of the `anthropic` package for `system.message`. Raises Invalid, Forbidden."""
    places = [at for at, event in enumerate(events) if isinstance(event, SystemMessageEvent)]
    if not places:
        return
    need_key(unit.caller)
    at = places[0]
    if len(places) > 1:
        what = "Send one `system.message` per request, as its last event: put all that it says into its `content`."
    elif at < len(events) - 1:
        what = "Send `system.message` as the last event of the request."
    elif at == 0 or not isinstance(events[at - 1], UserMessageEvent | CustomToolResultEvent):
        what = "Send `system.message` right behind the `user.message` or `user.custom_tool_result` that it goes with."
    else:
        return
    raise Invalid(what, Pointer(pointer=f"/events/{at}", detail=what))


async def _send(session_id: str, event: FromPeople, at: str, unit: UnitOfWork, service: TheService, redirects: bool) -> Event:
    answers = service.answers
    match event:
        case UserMessageEvent():
            new = NewRun(
                message_of(event.content),
                on_busy="interrupt" if redirects else None,
                client_event_id=event.client_event_id,
                content_at=f"{at}/content",
            )
            stored, _ = await service.runs.submit(unit, session_id, new)
            return stored
        case InterruptEvent():
            return await service.sessions.interrupt(unit, session_id, event.session_thread_id)
        case ToolConfirmationEvent():
            need(unit.caller, "approvals")
            decision = Decision(
                approve=event.result == "allow",
                reason=event.deny_message,
                edited_input=event.input,
                remember=event.remember,
            )
            return await answers.confirm(unit, session_id, event.tool_use_id, decision)
        case CustomToolResultEvent():
            need(unit.caller, "tool_results")
            content = content_of(event.content)
            return await answers.custom_result(unit, session_id, event.custom_tool_use_id, content, event.is_error)
        case AnswerEvent():
            return await answers.answer(unit, session_id, event.tool_use_id, content_of(event.content))


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
    """The session's log, with what sub-agents do on their threads (`session_thread_id`). Callers with `anthropic-beta` get the
    primary thread, and the states of the others."""
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
        primary=CROSS_POSTED if is_sdk(request) else None,
    )
    following = seq_cursor(events[limit - 1].seq) if len(events) > limit else None
    hidden = hidden_from(caller)
    shown = [event.wire() for event in events[:limit] if event.type not in hidden]
    return listed([for_sdk(event) for event in shown] if is_sdk(request) else shown, following)


@router.get("/items")
async def list_items(
    session_id: str, caller: SessionsRead, unit: UnitOfWork, limit: EventLimit = 100, page: Cursor = None
) -> List[dict[str, Any]]:
    """The primary thread's transcript folded for reading: messages, reasoning, tool uses with results, compactions."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    after = 0 if page is None else seq_of(page)
    types = ("user.message", "system.message", "agent.message", "agent.thinking", "agent.thread_context_compacted", *USES)
    types = tuple(type for type in types if type not in hidden_from(caller))
    events = await read(unit.connection, session_id, after=after, types=types, primary=(), limit=limit + 1)
    shown = events[:limit]
    results = await _results(unit, session_id, shown)
    following = seq_cursor(shown[-1].seq) if len(events) > limit else None
    return listed([_item(event, results) for event in shown], following)


async def _results(unit: UnitOfWork, session_id: str, events: list[Event]) -> dict[str, Result]:
    open_uses = {event.id: event.run_id for event in events if event.type in USES}
    found: dict[str, Result] = {}
    after = events[0].seq if events else 0
    while open_uses:
        types = (*RESULTS, *RUN_OVER_TYPES)
        page = await read(unit.connection, session_id, after=after, types=types, primary=(), limit=RESULTS_PAGE)
        for event in page:
            match event.payload:
                case AgentToolResult(tool_use_id=use) | AgentMcpToolResult(mcp_tool_use_id=use) if use in open_uses:
                    found[use] = event.payload
                    del open_uses[use]
                case UserCustomToolResult(custom_tool_use_id=use) if use in open_uses:
                    found[use] = event.payload
                    del open_uses[use]
                case RunCompleted() | RunFailed() | RunCancelled() | RunTerminated():
                    # None comes any more: else the rest of the log would be looked through for it.
                    open_uses = {use: run for use, run in open_uses.items() if run != event.run_id}
                case _:
                    pass
        if len(page) < RESULTS_PAGE:
            break
        after = page[-1].seq
    return found


def _item(event: Event, results: dict[str, Result]) -> dict[str, Any]:
    item: dict[str, Any] = {"id": event.id, "seq": event.seq, "run_id": event.run_id, "created_at": wire(event.created_at)}
    match event.payload:
        case UserMessage(content=content):
            item |= {"type": "message", "role": "user", "content": [c.model_dump() for c in content]}
        case SystemMessage(content=content):
            item |= {"type": "message", "role": "system", "content": [c.model_dump() for c in content]}
        case AgentMessage(content=content, interrupted=interrupted):
            item |= {"type": "message", "role": "agent", "content": [c.model_dump() for c in content]}
            item["interrupted"] = interrupted
        case ContextCompacted(summary=summary):
            item |= {"type": "compaction", "summary": summary}
        case AgentThinking(text=text):
            item |= {"type": "thinking", "text": text}
        case AgentToolUse(name=name, input=arguments) | AgentCustomToolUse(name=name, input=arguments):
            item |= {"type": "tool_use", "name": name, "input": arguments, "result": _shown(results.get(event.id))}
        case AgentMcpToolUse(mcp_server_name=server, name=name, input=arguments):
            item |= {"type": "tool_use", "mcp_server_name": server, "name": name, "input": arguments}
            item["result"] = _shown(results.get(event.id))
        case _:
            pass
    return item


def _shown(result: Result | None) -> dict[str, Any] | None:
    ids = {"tool_use_id", "mcp_tool_use_id", "custom_tool_use_id"}
    return None if result is None else result.model_dump(mode="json", exclude={"type", *ids})
