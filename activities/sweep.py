"""The sweeper: delivers what a crash left between a row and Temporal, and settles runs that ended outside."""

import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.heartbeat import heartbeating
from activities.records import finish
from domain.commands import FinishInput, RunStart, RunState, SweepResult
from domain.errors import Unavailable
from domain.runs import StopType
from storage.database import Database
from storage.runs import Runs
from storage.starts import Route, run_start
from storage.tables import RunRow

log = logging.getLogger(__name__)

DELIVERY = timedelta(seconds=5)
"""A command younger than this is still being delivered by the process that accepted it."""
PAGE = 200
RECENT = timedelta(minutes=10)

Ending = tuple[Literal["failed", "cancelled", "terminated"], StopType, str | None, str | None]

_ENDINGS: Mapping[WorkflowExecutionStatus, Ending] = {
    WorkflowExecutionStatus.CANCELED: ("cancelled", "interrupted", None, None),
    WorkflowExecutionStatus.TERMINATED: ("terminated", "interrupted", None, None),
    WorkflowExecutionStatus.TIMED_OUT: ("failed", "error", "workflow_timed_out", "The workflow timed out in Temporal."),
    WorkflowExecutionStatus.FAILED: ("failed", "error", "workflow_failed", "The workflow failed; see its history."),
    WorkflowExecutionStatus.COMPLETED: ("failed", "error", "workflow_lost", "The workflow ended without settling the run."),
}


class Commands(Protocol):
    """What the sweeper needs of `workflows.client.RunClient`, which stands a layer above."""

    async def start(self, start: RunStart) -> None: ...
    async def pause(self, run_id: str, mode: Literal["step", "now"]) -> None: ...
    async def resume(self, run_id: str) -> None: ...
    async def cancel(self, run_id: str) -> None: ...
    async def terminate(self, run_id: str, reason: str | None) -> None: ...
    async def state(self, run_id: str) -> RunState: ...


class SweepActivities:
    def __init__(self, database: Database, client: Client, commands: Commands, routes: Mapping[str, Route]) -> None:
        self._database = database
        self._client = client
        self._commands = commands
        self._routes = routes
        self._looked_back = False

    @activity.defn(name="sweep.run")
    async def run(self) -> SweepResult:
        """One sweep. Costs what there is to repair: runs that are idle or over are not looked at."""
        async with heartbeating():
            delivered = await self._deliver()
            # The first sweep of a process looks back as far as Temporal remembers: it may have been away for long.
            settled = await self._settle_closed(RECENT if self._looked_back else None)
            self._looked_back = True
        return SweepResult(delivered=delivered, settled=settled)

    @activity.defn(name="sweep.settle")
    async def settle(self, run_id: str) -> None:
        """Settle one run that was just terminated."""
        async with self._database.read() as connection:
            row = await Runs(connection).get(run_id)
        await self._settle_if_closed(row)

    async def _deliver(self) -> int:
        async with self._database.read() as connection:
            rows = await Runs(connection).undelivered(DELIVERY, PAGE)
        for row in rows:
            if row.status == "queued" and row.cancel_requested_at is None and row.terminate_requested_at is None:
                await self._try(self._commands.start(run_start(row, self._routes)))
            else:
                await self._redeliver(row)
        return len(rows)

    async def _redeliver(self, row: RunRow) -> None:
        if await self._settle_if_closed(row):
            return
        if row.terminate_requested_at is not None:
            await self._try(self._commands.terminate(row.id, row.stop_note))
        elif row.cancel_requested_at is not None:
            await self._try(self._commands.cancel(row.id))
        elif row.resume_requested_at is not None:
            await self._try(self._commands.resume(row.id))
        elif row.pause_requested_at is not None and not (await self._commands.state(row.id)).pause_requested:
            await self._try(self._commands.pause(row.id, "now" if row.pause_mode == "now" else "step"))

    async def _settle_if_closed(self, row: RunRow) -> bool:
        try:
            description = await self._client.get_workflow_handle(row.id).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            if row.status != "queued":
                await self._end(row, ("failed", "error", "workflow_lost", "Temporal no longer knows this run."))
            elif row.terminate_requested_at is not None:
                await self._end(row, _ENDINGS[WorkflowExecutionStatus.TERMINATED])
            else:
                await self._end(row, _ENDINGS[WorkflowExecutionStatus.CANCELED])
            return True
        if description.status is None or description.status == WorkflowExecutionStatus.RUNNING:
            return False
        await self._end(row, _ENDINGS.get(description.status, _ENDINGS[WorkflowExecutionStatus.FAILED]))
        return True

    async def _settle_closed(self, within: timedelta | None) -> int:
        settled = 0
        async for run_ids in self._closed(within):
            async with self._database.read() as connection:
                rows = await Runs(connection).not_over(run_ids)
            for row in rows:
                settled += await self._settle_if_closed(row)
        return settled

    async def _closed(self, within: timedelta | None) -> AsyncIterator[list[str]]:
        query = "WorkflowType = 'agent_run' AND ExecutionStatus IN ('Canceled', 'Terminated', 'Failed', 'TimedOut')"
        if within is not None:
            query += f" AND CloseTime > '{(datetime.now(UTC) - within).isoformat()}'"
        found: list[str] = []
        async for execution in self._client.list_workflows(query, page_size=500):
            found.append(execution.id)
            if len(found) == 500:
                yield found
                found = []
        if found:
            yield found

    async def _end(self, row: RunRow, ending: Ending) -> None:
        status, stop, code, message = ending
        outcome = FinishInput(
            run_id=row.id,
            session_id=row.session_id,
            attempt=row.attempt,
            status=status,
            stop_type=stop,
            error_code=code,
            error_message=message,
            retryable=status == "failed",
        )
        async with self._database.write() as transaction:
            result = await finish(transaction, outcome, self._routes)
        log.info("settled %s as %s", row.id, status)
        if result.next_run is not None:
            await self._try(self._commands.start(result.next_run))

    async def _try(self, delivery: Awaitable[None]) -> None:
        try:
            await delivery
        except (RPCError, Unavailable) as error:
            log.warning("not delivered, the next sweep tries again: %s", error)
