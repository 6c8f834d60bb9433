"""/v1/batches: many runs with one call."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from sse_starlette import EventSourceResponse

from api.auth import RunsRead, RunsWrite
from api.content import Content, Text, TextBlock, content_of
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Order, listed
from api.routes.runs import Reason
from api.routes.sessions import AgentChoice, choose_agent
from api.routes.streams import SSE, After, authenticated
from api.sse import End, start_of, stream
from api.state import Service, TheService
from api.tail import Viewer
from api.transaction import TransactionalRoute, Unit, UnitOfWork
from api.wire import Time
from domain.agents import Limits, Metadata
from domain.batch_events import BATCH_OVER_TYPES, BatchCancelRequested, BatchCounts, BatchCreated
from domain.batches import MAX_ITEMS, MOST_AT_ONCE, BatchStatus, ItemStatus, WorkRef
from domain.clock import now
from domain.errors import Conflict, Invalid, Pointer
from domain.ids import new_id
from domain.runs import AgentRef, RunError
from domain.usage import Cost, Usage, cost_of
from storage.agents import Agents
from storage.batch_tables import BatchRow
from storage.batches import Batches, NewItem, Result, item_status
from storage.journal import Draft, last_seqs

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=TransactionalRoute, responses=PROBLEMS)
streams = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=[Depends(authenticated)])

RESULTS_PAGE = 200
JSON_LINES = "application/jsonl"
_LINES: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}, "description": "One JSON object a line"},
}


class BatchItem(BaseModel):
    """An input with names of its own; an input alone may stand in its place."""

    model_config = ConfigDict(extra="forbid")

    input: Content
    custom_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Unique in the batch. Its run has it in its metadata."""
    metadata: Metadata = {}


def _kind_of_input(given: object) -> str:
    if isinstance(given, str):
        return "text"
    return "blocks" if isinstance(given, list) else "item"


BatchInput = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextBlock], Field(min_length=1, max_length=100), Tag("blocks")]
    | Annotated[BatchItem, Tag("item")],
    Discriminator(_kind_of_input),
]
"""Told apart before they are checked, so that a fault is reported once and where it is."""


class BatchCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: AgentChoice
    inputs: Annotated[list[BatchInput], Field(min_length=1, max_length=MAX_ITEMS)]
    limits: Limits | None = None
    """Of each run; left out, the agent's own."""
    metadata: Metadata = {}
    max_concurrent: Annotated[int, Field(ge=1, le=MOST_AT_ONCE, strict=True)] = 16
    """Runs at work at once. All batches together have a hundred, which they share evenly, each at least one."""


class BatchStop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason | None = None


class BatchLinks(BaseModel):
    runs: str
    results: str
    stream: str


class Batch(BaseModel):
    type: Literal["batch"] = "batch"
    id: str
    agent: AgentRef
    status: BatchStatus
    counts: BatchCounts
    max_concurrent: int
    limits: Limits
    metadata: dict[str, str]
    created_at: Time
    cancel_requested_at: Time | None
    finished_at: Time | None
    links: BatchLinks


class BatchInFull(Batch):
    usage: Usage
    """Of all its runs, their sub-agents included."""
    cost: Cost | None


class BatchResult(BaseModel):
    """A line of the results."""

    index: int
    custom_id: str | None
    run_id: str | None
    """None: it was never begun."""
    status: ItemStatus
    output: str | None
    error: RunError | None
    usage: Usage
    cost: Cost | None

    @classmethod
    def of(cls, found: Result, batch: BatchRow) -> "BatchResult":
        return cls.model_validate(
            {
                "index": found.index,
                "custom_id": found.custom_id,
                "run_id": found.run_id,
                "status": item_status(found, batch),
                "output": found.output,
                "error": found.error,
                "usage": Usage(
                    input_tokens=found.input_tokens or 0,
                    output_tokens=found.output_tokens or 0,
                    cache_read_input_tokens=found.cache_read_input_tokens or 0,
                    cache_creation_input_tokens=found.cache_creation_input_tokens or 0,
                    estimated=bool(found.usage_estimated),
                ),
                "cost": cost_of(found.cost_nano_usd),
            }
        )


@router.post("", status_code=201)
async def create_batch(
    body: BatchCreate, caller: RunsWrite, unit: UnitOfWork, service: TheService, response: Response
) -> BatchInFull:
    """Run an agent on up to 10,000 inputs, a few at a time, behind work that somebody waits for; answers at once."""
    _refuse_repeats(body.inputs)
    agent = await choose_agent(unit, service, body.agent)
    row = BatchRow(
        id=new_id("batch"),
        workspace_id=caller.workspace_id,
        agent_id=agent.id,
        agent_version=agent.version,
        limits=(body.limits or agent.config.limits).model_dump(mode="json"),
        meta=body.metadata,
        max_concurrent=body.max_concurrent,
        item_count=len(body.inputs),
        created_at=now(),
    )
    batches = Batches(unit.connection)
    await batches.add(row, [_item(given) for given in body.inputs])
    counts = BatchCounts(total=row.item_count, queued=row.item_count)
    await unit.journal.append(row.id, None, [Draft(BatchCreated(counts=counts))])
    work = WorkRef(kind="batch", id=row.id, workspace_id=row.workspace_id)
    unit.deliveries.append(lambda: service.client.work_on(work))
    response.headers["Location"] = f"/v1/batches/{row.id}"
    response.headers["Content-Location"] = f"/v1/batches/{row.id}/events/stream"
    return await _in_full(unit, row)


def _refuse_repeats(inputs: list[Any]) -> None:
    seen: set[str] = set()
    for index, given in enumerate(inputs):
        custom_id = given.custom_id if isinstance(given, BatchItem) else None
        if custom_id is not None and custom_id in seen:
            fault = Pointer(pointer=f"/inputs/{index}/custom_id", detail=f"{custom_id!r} is used twice in this batch.")
            raise Invalid(fault.detail, fault)
        seen |= set() if custom_id is None else {custom_id}


def _item(given: "str | list[TextBlock] | BatchItem") -> NewItem:
    if not isinstance(given, BatchItem):
        return NewItem(None, content_of(given), {})
    named = {} if given.custom_id is None else {"custom_id": given.custom_id}
    return NewItem(given.custom_id, content_of(given.input), {**given.metadata, **named})


@router.get("")
async def list_batches(
    caller: RunsRead, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None, order: Order = "desc"
) -> List[Batch]:
    """Batches, the newest first; usage and cost are in each one by itself."""
    batches = Batches(unit.connection)
    found = await batches.find(caller.workspace_id, limit=limit, cursor=page, descending=order == "desc")
    return listed(await _batches(unit, list(found.rows)), found.next_page)


@router.get("/{batch_id}")
async def get_batch(batch_id: str, caller: RunsRead, unit: UnitOfWork) -> BatchInFull:
    """A batch, and its items by where they stand now: a run that was retried counts as what it is."""
    return await _in_full(unit, await Batches(unit.connection).get(batch_id, caller.workspace_id))


@router.post("/{batch_id}/cancel", status_code=202)
async def cancel_batch(batch_id: str, caller: RunsWrite, unit: UnitOfWork, body: BatchStop | None = None) -> BatchInFull:
    """Begin nothing more and cancel what is at work; `batch.cancelled` says when all of it has stopped."""
    batches = Batches(unit.connection)
    row = await batches.get(batch_id, caller.workspace_id, lock=True)
    if row.finished_at is not None:
        raise Conflict(f"Batch {batch_id} is {row.status}.")
    if row.cancel_requested_at is None:
        reason = (body or BatchStop()).reason
        await batches.change(batch_id, status="cancelling", cancel_requested_at=now(), cancel_reason=reason)
        await unit.journal.append(batch_id, None, [Draft(BatchCancelRequested(reason=reason))])
        # Whoever works on it looks at its row: nobody else need be told.
    return await _in_full(unit, await batches.get(batch_id))


@streams.get("/{batch_id}/results", response_class=StreamingResponse, responses=_LINES)
async def get_batch_results(batch_id: str, caller: RunsRead, service: TheService) -> StreamingResponse:
    """JSON Lines, one per input and in their order, as they stand now: `{index, custom_id, run_id, status, output, …}`."""
    async with service.database.read() as connection:
        row = await Batches(connection).get(batch_id, caller.workspace_id)
    return StreamingResponse(_lines(service, row), media_type=JSON_LINES, headers={"Cache-Control": "no-store"})


async def _lines(service: Service, batch: BatchRow) -> AsyncIterator[str]:
    """Page by page: the connection is held by no caller who reads slowly."""
    begin = 0
    while begin < batch.item_count:
        async with service.database.read() as connection:
            page = await Batches(connection).results(batch.id, begin, RESULTS_PAGE)
        yield "".join(BatchResult.of(found, batch).model_dump_json() + "\n" for found in page)
        begin += RESULTS_PAGE


@streams.get("/{batch_id}/events/stream", response_class=EventSourceResponse, responses=SSE)
async def stream_batch(
    request: Request, batch_id: str, caller: RunsRead, service: TheService, after: After = None
) -> EventSourceResponse:
    """Follow its progress from the first event, or from `Last-Event-ID` or `after`, to the last; then `event: done`."""
    async with service.database.read() as connection:
        row = await Batches(connection).get(batch_id, caller.workspace_id)
        ((_, last_seq),) = await last_seqs(connection, [batch_id])
    start = start_of(request, after, last_seq, default=0)
    end = End(0, None if row.finished_at is None else last_seq, {"batch_id": batch_id}, row.status, BATCH_OVER_TYPES)
    return stream(request, service, batch_id, Viewer(after=start.seq, previews=frozenset()), last_seq, end)


async def _batches(unit: Unit, rows: list[BatchRow]) -> list[Batch]:
    agents = await Agents(unit.connection, unit.caller.workspace_id).many((row.agent_id, row.agent_version) for row in rows)
    counts = await Batches(unit.connection).counts(rows)
    return [
        Batch(
            id=row.id,
            agent=AgentRef(
                id=row.agent_id, version=row.agent_version, name=agents[row.agent_id, row.agent_version].config.name
            ),
            status=cast("BatchStatus", row.status),
            counts=counts[row.id],
            max_concurrent=row.max_concurrent,
            limits=Limits.model_validate(row.limits),
            metadata=row.meta,
            created_at=row.created_at,
            cancel_requested_at=row.cancel_requested_at,
            finished_at=row.finished_at,
            links=BatchLinks(
                runs=f"/v1/runs?batch_id={row.id}",
                results=f"/v1/batches/{row.id}/results",
                stream=f"/v1/batches/{row.id}/events/stream",
            ),
        )
        for row in rows
    ]


async def _in_full(unit: Unit, row: BatchRow) -> BatchInFull:
    (batch,) = await _batches(unit, [row])
    usage, cost = await Batches(unit.connection).usage(row.id)
    return BatchInFull(**vars(batch), usage=usage, cost=cost_of(cost))
