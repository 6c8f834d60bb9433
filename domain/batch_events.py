"""Events of a batch's own log: how far it has come."""

from typing import Literal

from domain.batches import ItemStatus
from domain.payload import Payload


class BatchCounts(Payload):
    """Items by where they stand. Those that were never started are `queued`, and `cancelled` once the batch is over."""

    total: int
    queued: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    terminated: int = 0
    deleted: int = 0


class FinishedItem(Payload):
    index: int
    custom_id: str | None = None
    run_id: str
    status: ItemStatus


class BatchCreated(Payload):
    type: Literal["batch.created"] = "batch.created"
    counts: BatchCounts


class BatchProgress(Payload):
    """The items that are over since the last such event: some at a time, so that ten thousand do not drown a viewer."""

    type: Literal["batch.progress"] = "batch.progress"
    counts: BatchCounts
    finished: tuple[FinishedItem, ...]


class BatchCancelRequested(Payload):
    type: Literal["batch.cancel_requested"] = "batch.cancel_requested"
    reason: str | None = None


class BatchCompleted(Payload):
    """Every item is over, in whichever way."""

    type: Literal["batch.completed"] = "batch.completed"
    counts: BatchCounts


class BatchCancelled(Payload):
    type: Literal["batch.cancelled"] = "batch.cancelled"
    counts: BatchCounts
    reason: str | None = None


class BatchTerminated(Payload):
    """Its workflow was ended in Temporal. Items that were at work then are being cancelled."""

    type: Literal["batch.terminated"] = "batch.terminated"
    counts: BatchCounts


BatchEvent = BatchCreated | BatchProgress | BatchCancelRequested | BatchCompleted | BatchCancelled | BatchTerminated

BATCH_OVER_TYPES = frozenset({"batch.completed", "batch.cancelled", "batch.terminated"})
