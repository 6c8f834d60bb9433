"""/v1/bulk_operations: one command for all runs that match a filter."""

from typing import Annotated, Literal, Self, cast

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.auth import RunsRead, RunsWrite
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Moment, Order, listed
from api.routes.runs import Reason
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Time
from domain.batches import BulkAction, BulkFilter, BulkStatus, WorkRef
from domain.clock import now
from domain.ids import new_id
from domain.runs import RunStatus
from storage.batch_tables import BulkOperationRow
from storage.bulk import BulkOperations
from storage.rows import add

router = APIRouter(prefix="/v1/bulk_operations", tags=["bulk operations"], route_class=TransactionalRoute, responses=PROBLEMS)

Id = Annotated[str, Field(max_length=64)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r'^[^"\\]*$')]
"""Without what would end a name in SQLite's paths into JSON."""


class Filter(BaseModel):
    """Which runs; all that is named must hold. A sub-agent's run is never meant: it goes along with the run that delegates."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[tuple[RunStatus, ...], Field(max_length=8)] = ()
    agent_id: Id | None = None
    session_id: Id | None = None
    batch_id: Id | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    metadata: Annotated[dict[MetadataName, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = {}

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("name at least one member: this would be every run")
        return self


class BulkCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: BulkAction
    filter: Filter
    dry_run: Annotated[bool, Field(strict=True)] = False
    """Only count."""
    reason: Reason | None = None
    """Of cancel and terminate; kept in each run's log."""


class BulkOperation(BaseModel):
    type: Literal["bulk_operation"] = "bulk_operation"
    id: str | None
    """None: it was a dry run."""
    action: BulkAction
    filter: BulkFilter
    reason: str | None
    dry_run: bool
    matched: int
    matched_by_status: dict[RunStatus, int]
    """What it is for, as it stood when it was asked for."""
    done: int
    skipped: int
    """Runs that were over, or whose session had gone on, before their turn came."""
    status: BulkStatus | None
    created_at: Time
    finished_at: Time | None

    @classmethod
    def of(cls, row: BulkOperationRow, *, dry_run: bool = False) -> "BulkOperation":
        return cls(
            id=None if dry_run else row.id,
            action=cast("BulkAction", row.action),
            filter=BulkFilter.model_validate(row.wanted),
            reason=row.reason,
            dry_run=dry_run,
            matched=sum(row.matched.values()),
            matched_by_status={RunStatus(status): count for status, count in row.matched.items()},
            done=row.done_count,
            skipped=row.skipped_count,
            status=None if dry_run else cast("BulkStatus", row.status),
            created_at=row.created_at,
            finished_at=row.finished_at,
        )


@router.post("", status_code=202, responses={200: {"model": BulkOperation, "description": "The count of a dry run"}})
async def start_bulk_operation(
    body: BulkCreate, caller: RunsWrite, unit: UnitOfWork, service: TheService, response: Response
) -> BulkOperation:
    """Cancel, terminate or retry every run that matches and was there by now; `dry_run` only counts them."""
    wanted = BulkFilter.model_validate(body.filter.model_dump())
    operations = BulkOperations(unit.connection)
    row = BulkOperationRow(
        id=new_id("bulk"),
        workspace_id=caller.workspace_id,
        action=body.action,
        wanted=wanted.model_dump(mode="json", exclude_defaults=True),
        reason=body.reason,
        matched=await operations.count(caller.workspace_id, body.action, wanted),
        created_at=now(),
    )
    if body.dry_run:
        response.status_code = 200
        return BulkOperation.of(row, dry_run=True)
    await add(unit.connection, row)
    work = WorkRef(kind="bulk_operation", id=row.id, workspace_id=row.workspace_id)
    unit.deliveries.append(lambda: service.client.work_on(work))
    response.headers["Location"] = f"/v1/bulk_operations/{row.id}"
    return BulkOperation.of(row)


@router.get("")
async def list_bulk_operations(
    caller: RunsRead, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None, order: Order = "desc"
) -> List[BulkOperation]:
    """Bulk operations, the newest first."""
    operations = BulkOperations(unit.connection)
    found = await operations.find(caller.workspace_id, limit=limit, cursor=page, descending=order == "desc")
    return listed([BulkOperation.of(row) for row in found.rows], found.next_page)


@router.get("/{operation_id}")
async def get_bulk_operation(operation_id: str, caller: RunsRead, unit: UnitOfWork) -> BulkOperation:
    """How far it has come. `done` runs have been told; that they have stopped, they say themselves."""
    return BulkOperation.of(await BulkOperations(unit.connection).get(operation_id, caller.workspace_id))
