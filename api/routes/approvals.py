"""/v1/approvals and /v1/external_events: what people decide, and what happens outside."""

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from api.auth import RunsRead, RunsWrite
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Order, listed
from api.services.answers import MOST_WOKEN, approval_of
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from domain.approvals import Approval, ApprovalStatus, Decision
from storage.approvals import ApprovalFilter, Approvals

router = APIRouter(prefix="/v1", tags=["approvals"], route_class=TransactionalRoute, responses=PROBLEMS)


class DecisionCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "deny"]
    reason: Annotated[str, Field(max_length=10_000)] | None = None
    """Of a denial, the model reads it."""
    input: dict[str, JsonValue] | None = None
    """Arguments in place of those that were asked about; the model is told."""
    remember: Annotated[bool, Field(strict=True)] = False
    """Decide every further call of this tool in the session so."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.decision == "deny" and self.input is not None:
            raise ValueError("`input` goes with `approve`: a denied call has no arguments")
        return self


class ExternalEventCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(min_length=1, max_length=200)]
    data: dict[str, JsonValue] = {}


class ExternalEventAccepted(BaseModel):
    id: str
    type: str
    woken: int
    """Runs that waited for it."""
    has_more: bool
    """More may wait than one event wakes; publish it again."""


@router.get("/approvals")
async def list_approvals(
    caller: RunsRead,
    unit: UnitOfWork,
    limit: Limit = 20,
    page: Cursor = None,
    order: Order = "desc",
    status: Annotated[list[ApprovalStatus] | None, Query()] = None,
    session_id: str | None = None,
    run_id: str | None = None,
) -> List[Approval]:
    """The inbox across all sessions: `?status=pending`, the newest first."""
    wanted = ApprovalFilter(status or (), session_id, run_id)
    found = await Approvals(unit.connection).find(
        caller.workspace_id, wanted, limit=limit, cursor=page, descending=order == "desc"
    )
    return listed([approval_of(row) for row in found.rows], found.next_page)


@router.get("/approvals/{approval_id}")
async def get_approval(approval_id: str, caller: RunsRead, unit: UnitOfWork) -> Approval:
    return approval_of(await Approvals(unit.connection).get(approval_id, caller.workspace_id))


@router.post("/approvals/{approval_id}/decision")
async def decide(approval_id: str, body: DecisionCreate, caller: RunsWrite, unit: UnitOfWork, service: TheService) -> Approval:
    """Approve or deny a tool call. The first decision counts: a later one is 409, with the approval as it was decided."""
    decision = Decision(approve=body.decision == "approve", reason=body.reason, edited_input=body.input, remember=body.remember)
    return approval_of(await service.answers.decide(unit, approval_id, decision))


@router.post("/external_events", status_code=202)
async def publish_event(
    body: ExternalEventCreate, caller: RunsWrite, unit: UnitOfWork, service: TheService
) -> ExternalEventAccepted:
    """Wake the runs that wait for an event of this type whose `match` fits the data."""
    event_id, woken = await service.answers.publish(unit, body.type, body.data)
    return ExternalEventAccepted(id=event_id, type=body.type, woken=woken, has_more=woken >= MOST_WOKEN)
