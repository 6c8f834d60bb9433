"""The workflows of a batch and of a bulk operation: each sees to it that one activity keeps working until all is done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import workflow

from activities.batches import BatchActivities
from activities.bulk import BulkActivities
from domain.batches import WorkRef, WorkResult
from workflows import options

Work = Callable[[Any, WorkRef], Awaitable[WorkResult]]


async def _until_over(work: Work, ref: WorkRef) -> None:
    while not (await workflow.execute_activity_method(work, ref, **options.steady())).over:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(ref)


@workflow.defn(name="batch")
class Batch:
    """The runs are no children of it: each lives by itself, and a batch of any size has a history of a few events."""

    @workflow.run
    async def run(self, ref: WorkRef) -> None:
        working = asyncio.create_task(_until_over(BatchActivities.work, ref))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            # The same as over HTTP: it is over when what is at work has really stopped.
            await workflow.execute_activity_method(BatchActivities.cancel, ref, **options.record("cancel"))
            await working
            raise


@workflow.defn(name="bulk_operation")
class BulkOperation:
    @workflow.run
    async def run(self, ref: WorkRef) -> None:
        await _until_over(BulkActivities.work, ref)
