"""The sweeper's look at batches and bulk operations: what was never started is, and what ended in Temporal is closed."""

import logging
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Literal

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.batches import BatchActivities
from activities.bulk import BulkActivities
from activities.commands import Commands
from domain.batches import WorkRef
from domain.clock import now
from domain.errors import Unavailable
from storage.batch_tables import BatchRow, BulkOperationRow
from storage.batches import Batches
from storage.bulk import BulkOperations
from storage.database import Database

log = logging.getLogger(__name__)

PAGE = 200
DELIVERY = timedelta(seconds=5)
"""What is younger is still being started by the process that accepted it."""


class Unfinished:
    def __init__(
        self, database: Database, client: Client, commands: Commands, batches: BatchActivities, bulk: BulkActivities
    ) -> None:
        self._database = database
        self._client = client
        self._commands = commands
        self._batches = batches
        self._bulk = bulk

    async def look(self) -> int:
        """How many were started or closed. Costs a question to Temporal's list for two hundred of them."""
        repaired = 0
        async for refs in self._pages():
            running = await self._running([ref.id for ref in refs])
            for ref in refs:
                if ref.id not in running:
                    try:
                        repaired += await self._repair(ref)
                    except (RPCError, Unavailable) as error:
                        log.warning("the next sweep tries again: %s: %s", ref.id, error)
        return repaired

    async def _pages(self) -> AsyncIterator[Sequence[WorkRef]]:
        kinds: tuple[Literal["batch", "bulk_operation"], ...] = ("batch", "bulk_operation")
        for kind in kinds:
            after = ""
            while True:
                rows: Sequence[BatchRow | BulkOperationRow]
                async with self._database.read() as connection:
                    repository = Batches(connection) if kind == "batch" else BulkOperations(connection)
                    rows = await repository.unfinished(after, PAGE)
                old = [row for row in rows if row.created_at < now() - DELIVERY]
                if old:
                    yield [WorkRef(kind=kind, id=row.id, workspace_id=row.workspace_id) for row in old]
                if len(rows) < PAGE:
                    break
                after = rows[-1].id

    async def _running(self, ids: Sequence[str]) -> set[str]:
        named = ", ".join(f"'{id}'" for id in ids)
        query = f"ExecutionStatus = 'Running' AND WorkflowId IN ({named})"
        return {execution.id async for execution in self._client.list_workflows(query, page_size=PAGE)}

    async def _repair(self, ref: WorkRef) -> int:
        try:
            found = await self._client.get_workflow_handle(ref.id).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            await self._commands.work_on(ref)
            return 1
        if found.status in (None, WorkflowExecutionStatus.RUNNING):  # Temporal's list is a little behind
            return 0
        status = "cancelled" if found.status == WorkflowExecutionStatus.CANCELED else "terminated"
        if ref.kind == "batch":
            await self._batches.close(ref.id, status)
        else:
            await self._bulk.close(ref.id, status)
        log.warning("%s ended in Temporal: closed as %s", ref.id, status)
        return 1
