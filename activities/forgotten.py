"""Having Temporal delete the histories of workflows whose session was deleted."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from domain.clock import now
from storage.database import Database
from storage.forgotten import Forgotten
from storage.tables import ForgottenWorkflowRow

log = logging.getLogger(__name__)

PAGE = 50
AT_ONCE = 8
AT_MOST_SECONDS = 20.0
"""After this long the rest of a backlog is the next sweep's."""
AGAIN = timedelta(seconds=30)
"""When to look whether it has happened. Temporal's list may be behind, and a workflow may be about to start another."""
LIST_PAUSE_SECONDS = 0.2
RPC = timedelta(seconds=10)


class ForgottenWorkflows:
    def __init__(self, database: Database, client: Client) -> None:
        self._database = database
        self._client = client

    async def delete(self) -> None:
        """Ask Temporal for those that are due. A row goes when Temporal is found to know nothing of its workflow, some time
        after it was first asked.

        Raises RPCError while Temporal's list cannot be read.
        """
        until = time.monotonic() + AT_MOST_SECONDS
        while time.monotonic() < until:
            async with self._database.read() as connection:
                rows = await Forgotten(connection).due(PAGE)
            if not rows:
                return
            unknown = await self._delete_page([row.workflow_id for row in rows])
            done = [row.workflow_id for row in rows if row.workflow_id in unknown and _was_asked(row)]
            async with self._database.write() as transaction:
                forgotten = Forgotten(transaction.connection)
                await forgotten.done(done)
                await forgotten.ask_again([row.workflow_id for row in rows if row.workflow_id not in done], now() + AGAIN)
                await forgotten.give_up()
            await asyncio.sleep(LIST_PAUSE_SECONDS)

    async def _delete_page(self, workflow_ids: Sequence[str]) -> set[str]:
        """Delete all executions of these; those of which there was none any more."""
        listed = await self._executions(workflow_ids)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(workflow_id: str) -> bool:
            # Also the newest one, which the list may not have yet.
            async with slots:
                found = [await self._delete(workflow_id, run_id) for run_id in (*listed[workflow_id], "")]
            return any(found)

        results = await asyncio.gather(*(one(workflow_id) for workflow_id in workflow_ids), return_exceptions=True)
        for failure in [result for result in results if isinstance(result, BaseException)][:1]:
            log.warning("histories cannot be deleted now, trying again: %s", failure)
        return {workflow_id for workflow_id, result in zip(workflow_ids, results, strict=True) if result is False}

    async def _executions(self, workflow_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Every attempt of a run is one, and every part of a run that was continued as new."""
        ids = ", ".join(f"'{workflow_id}'" for workflow_id in workflow_ids)
        found: defaultdict[str, list[str]] = defaultdict(list)
        async for execution in self._client.list_workflows(f"WorkflowId IN ({ids})", rpc_timeout=RPC):
            found[execution.id].append(execution.run_id)
        return found

    async def _delete(self, workflow_id: str, run_id: str) -> bool:
        """Whether there was one."""
        execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
        request = DeleteWorkflowExecutionRequest(namespace=self._client.namespace, workflow_execution=execution)
        try:
            await self._client.workflow_service.delete_workflow_execution(request, timeout=RPC)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True


def _was_asked(row: ForgottenWorkflowRow) -> bool:
    return row.due_at > row.created_at
