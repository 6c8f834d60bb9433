"""Batches and bulk operations: many runs with one call. What travels between their workflows and activities."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from domain.runs import RunStatus

MAX_ITEMS = 10_000
MOST_AT_ONCE = 100
"""Runs at work at once in all batches together, but that each batch has one: half of the calls that one worker carries out."""

BatchStatus = Literal["running", "cancelling", "completed", "cancelled", "terminated"]
ItemStatus = RunStatus | Literal["deleted"]
"""Of an item whose run was deleted with its session: `deleted`."""

BulkAction = Literal["cancel", "terminate", "retry"]
BulkStatus = Literal["running", "completed", "cancelled", "terminated"]

_UNFINISHED = tuple(status for status in RunStatus if not status.over)
ELIGIBLE: dict[BulkAction, tuple[RunStatus, ...]] = {
    "cancel": _UNFINISHED,
    "terminate": _UNFINISHED,
    "retry": (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TERMINATED),
}
"""The runs that each action can be done to."""


class BulkFilter(BaseModel, frozen=True):
    """Which runs. All that are named must hold."""

    status: tuple[RunStatus, ...] = ()
    agent_id: str | None = None
    session_id: str | None = None
    batch_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: dict[str, str] = {}


class WorkRef(BaseModel, frozen=True):
    """The input of the workflows `batch` and `bulk_operation`, whose id is that of the row that they work on."""

    kind: Literal["batch", "bulk_operation"]
    id: str
    workspace_id: str


class WorkResult(BaseModel, frozen=True):
    over: bool
    """False: there is more to do, by whichever worker is there."""
