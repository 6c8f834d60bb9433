"""The sweeper: delivers what a crash left between a row and Temporal, and settles runs that ended outside."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.commands import Commands
from activities.executions import attempt_of
from activities.forgotten import ForgottenWorkflows
from activities.heartbeat import heartbeating
from activities.records import finish
from activities.tidy import Tidy
from activities.unfinished import Unfinished
from domain.approvals import ApprovalStatus
from domain.clock import now
from domain.commands import ApproveSignal, FinishInput, SweepInput, SweepResult
from domain.errors import NotFound
from domain.events import ErrorDetail, RetryStatus, SessionError
from domain.runs import FINISHED, RunError, RunStatus, StopType
from storage.approvals import Approvals
from storage.database import Database
from storage.journal import Draft, Journal
from storage.queues import Queues
from storage.runs import Active, Runs
from storage.starts import Route, run_start, title_start
from storage.tables import RunRow, SessionRow
from storage.titles import Titles, due_titles, first_turn
from storage.waits import Waits

log = logging.getLogger(__name__)

T = TypeVar("T")

DELIVERY = timedelta(seconds=5)
"""A command younger than this is still being delivered by the process that accepted it."""
OVERLAP = timedelta(minutes=5)
"""How far behind its executions Temporal's list may be."""
PAGE = 200
LISTED = 500
AT_ONCE = 16
DELIVER_SECONDS = 40
"""After this long the rest of a backlog is the next sweep's, so that nothing else waits for it."""
LIST_PAUSE_SECONDS = 0.2
"""Temporal answers 10 questions about its list a second, and people at its UI ask too."""


@dataclass(frozen=True)
class Ending:
    """How a run ended outside, as its row is to say it."""

    status: Literal["failed", "cancelled", "terminated"]
    stop: StopType
    code: str | None = None
    message: str | None = None


STUCK = "The workflow cannot go on; its history in Temporal says why. It does once that is repaired; terminate ends it."
CANCELLED = Ending("cancelled", "interrupted")
TERMINATED = Ending("terminated", "interrupted")
FORGOTTEN = Ending("failed", "error", "workflow_lost", "Temporal no longer knows this run.")

_ENDINGS: Mapping[WorkflowExecutionStatus, Ending] = {
    WorkflowExecutionStatus.CANCELED: CANCELLED,
    WorkflowExecutionStatus.TERMINATED: TERMINATED,
    WorkflowExecutionStatus.TIMED_OUT: Ending("failed", "error", "workflow_timed_out", "The workflow timed out in Temporal."),
    WorkflowExecutionStatus.FAILED: Ending("failed", "error", "workflow_failed", "The workflow failed; see its history."),
    WorkflowExecutionStatus.COMPLETED: Ending(
        "failed", "error", "workflow_lost", "The workflow ended without settling the run."
    ),
}


class SweepActivities:
    def __init__(
        self,
        database: Database,
        client: Client,
        commands: Commands,
        routes: Mapping[str, Route],
        tidy: Tidy,
        unfinished: Unfinished,
    ) -> None:
        self._database = database
        self._client = client
        self._commands = commands
        self._routes = routes
        self._tidy = tidy
        self._forgotten = ForgottenWorkflows(database, client)
        self._unfinished = unfinished
        self._compared = False

    @activity.defn(name="sweep.run")
    async def run(self, sweep: SweepInput) -> SweepResult:
        """One sweep. Costs what there is to repair: runs that are idle or over are not looked at.

        All of its parts are tried, and what one run raises holds up no other.
        """
        async with heartbeating():
            parts = [self._start_unstarted(), self._deliver_asked(), self._head_sessions(), self._start_titles()]
            parts += [self._report_stuck(), self._forget(), self._unfinished.look()]
            # What Temporal says has ended is found at once, but only while somebody looks, and only what it remembers. A
            # process that begins, or nobody having looked for a while, is when more may have happened: a power cut, a backup.
            thorough = sweep.since is None or not self._compared
            parts.append(self._compare() if sweep.since is None or thorough else self._settle_closed(sweep.since))
            done = await asyncio.gather(*parts, return_exceptions=True)
            await self._tidy.when_due()
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure
        self._compared = self._compared or thorough
        counts = [count for count in done if isinstance(count, int)]
        return SweepResult(delivered=sum(counts[:4]), settled=counts[-1])

    @activity.defn(name="sweep.settle")
    async def settle(self, run_id: str) -> None:
        """Settle one run that was just terminated."""
        try:
            async with self._database.read() as connection:
                row = await Runs(connection).get(run_id)
            await self._settle(row)
        except NotFound:  # deleted with its session
            pass

    async def _start_unstarted(self) -> int:
        async def start(row: RunRow) -> bool:
            if row.attempt == 1:
                await self._commands.start(run_start(row, self._routes))
            else:
                await self._settle_or_start(row)
            return True

        delivered = 0
        async for rows in self._pages(lambda runs, after: runs.unstarted(now() - DELIVERY, after, PAGE)):
            started = await self._each(start, rows)
            async with self._database.write() as transaction:
                await Runs(transaction.connection).workflows_seen([row.id for row in started])
            delivered += len(started)
        return delivered

    async def _deliver_asked(self) -> int:
        delivered = 0
        async for rows in self._pages(lambda runs, after: runs.asked(now() - DELIVERY, after, PAGE)):
            delivered += len(await self._each(self._deliver, rows))
        return delivered

    async def _head_sessions(self) -> int:
        async with self._database.read() as connection:
            headless = await Runs(connection).headless_sessions(now() - DELIVERY, PAGE)
        return len(await self._each(lambda session_id: self._take_over(session_id, ""), headless))

    async def _start_titles(self) -> int:
        async with self._database.read() as connection:
            due = await due_titles(connection, now() - DELIVERY, PAGE)
        return len(await self._each(self._start_title, due))

    async def _start_title(self, session: SessionRow) -> bool:
        async with self._database.read() as connection:
            turn = await first_turn(connection, session.id)
        start = None if turn is None else title_start(turn, self._routes)
        if start is not None:
            await self._commands.start_title(start)
        async with self._database.write() as transaction:
            titles = Titles(transaction.connection, session.workspace_id)
            await (titles.give_up(session.id) if start is None else titles.asked(session.id))
        return True

    async def _forget(self) -> int:
        try:
            await self._forgotten.delete()
        except RPCError as error:
            log.warning("histories cannot be deleted now, trying again: %s", error)
        return 0

    async def _settle_closed(self, since: datetime) -> int:
        """Settle what Temporal says has ended since then."""
        settled = 0
        async for run_ids in self._closed(since - OVERLAP):
            async with self._database.read() as connection:
                rows = await Runs(connection).not_over(run_ids)
            settled += len(await self._each(self._settle, rows))
        return settled

    async def _compare(self) -> int:
        """Compare all sessions that are at work with Temporal, and settle what differs."""
        after, settled = "", 0
        while True:
            async with self._database.read() as connection:
                page = await Runs(connection).active(after, PAGE)
                doubtful = [active.run_id for active in page if _may_be_over(active)]
            dangling = [active for active in page if active.status is None or active.status in FINISHED]
            settled += len(await self._each(lambda found: self._take_over(found.session_id, found.run_id), dangling))
            if doubtful:
                running = await self._running(doubtful)
                async with self._database.read() as connection:
                    rows = await Runs(connection).not_over([run_id for run_id in doubtful if run_id not in running])
                settled += len(await self._each(self._settle_or_start, rows))
            if len(page) < PAGE:
                return settled
            after = page[-1].run_id
            await asyncio.sleep(LIST_PAUSE_SECONDS)

    async def _report_stuck(self) -> int:
        """Say on the run that its workflow cannot go on: to Temporal it runs, and is tried again for as long as it takes."""
        problems = "'category=WorkflowTaskFailed', 'category=WorkflowTaskTimedOut'"
        query = f"WorkflowType = 'agent_run' AND ExecutionStatus = 'Running' AND TemporalReportedProblems IN ({problems})"
        try:
            found = [execution.id async for execution in self._client.list_workflows(query, page_size=PAGE, limit=PAGE)]
        except RPCError as error:
            if error.status != RPCStatusCode.INVALID_ARGUMENT:  # a server from before there was such a thing
                raise
            return 0
        async with self._database.read() as connection:
            rows = await Runs(connection).not_over(found)
        return len(await self._each(self._report, [row for row in rows if row.error is None]))

    async def _report(self, row: RunRow) -> bool:
        error = RunError(code="workflow_stuck", message=STUCK, retryable=True)
        detail = ErrorDetail(type="unknown_error", message=STUCK, code=error.code, retry_status=RetryStatus(type="retrying"))
        key = f"{row.id}.{row.attempt}/stuck{row.step_count}"
        async with self._database.write() as transaction:
            journal = Journal(transaction.connection, transaction.appended)
            changes = {"error": error.model_dump(mode="json")}
            await journal.append(row.session_id, row.id, [Draft(SessionError(error=detail))], key=key, run_changes=changes)
        log.error("%s is stuck: its history in Temporal says why", row.id)
        return True

    async def _pages(self, fetch: Callable[[Runs, RunRow | None], Awaitable[list[RunRow]]]) -> AsyncIterator[list[RunRow]]:
        began, after = time.monotonic(), None
        while time.monotonic() - began < DELIVER_SECONDS:
            async with self._database.read() as connection:
                rows = await fetch(Runs(connection), after)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            after = rows[-1]

    async def _each(self, act: Callable[[T], Awaitable[bool]], items: Sequence[T]) -> list[T]:
        """Do it for all, some at a time; returns those for which it answered True."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(item: T) -> bool:
            async with slots:
                return await act(item)

        results = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, BaseException):
                log.warning("the next sweep tries again: %s: %s", getattr(item, "id", item), result)
        return [item for item, result in zip(items, results, strict=True) if result is True]

    async def _deliver(self, row: RunRow) -> bool:
        """Deliver what the run was asked for; what ends it or overrides the rest comes first."""
        found = await self._look(row)
        if found is None:
            if row.terminate_requested_at is not None or row.cancel_requested_at is not None:
                await self._end(row, CANCELLED if row.terminate_requested_at is None else TERMINATED)
        elif isinstance(found, Ending):
            await self._end(row, found)
        elif row.terminate_requested_at is not None:
            await self._commands.terminate(row.id, row.stop_note)
        elif row.cancel_requested_at is not None:
            await self._commands.cancel(row.id)
        else:
            if row.answered_at is not None:
                await self._deliver_answers(row)
            if row.resume_requested_at is not None:
                await self._commands.resume(row.id)
            elif row.pause_requested_at is not None and not (await self._commands.state(row.id)).pause_requested:
                await self._commands.pause(row.id, "now" if row.pause_mode == "now" else "step")
        return True

    async def _deliver_answers(self, row: RunRow) -> None:
        async with self._database.read() as connection:
            waits = await Waits(connection).answered(row.id)
            approvals = await Approvals(connection).decided(row.id)
        for wait in waits:
            if wait.answer_id is not None:
                await self._commands.input(row.id, wait.answer_id, wait.tool_use_id)
        for approval in approvals:
            decision = "approve" if approval.status == ApprovalStatus.APPROVED else "deny"
            await self._commands.approve(row.id, ApproveSignal(approval_id=approval.id, decision=decision))
        # A signal is kept by Temporal: telling it once is enough, though the run may wait for something else for a month.
        async with self._database.write() as transaction:
            await Runs(transaction.connection).told(row.id, row.answered_at)

    async def _settle(self, row: RunRow) -> bool:
        """Settle the run if its workflow is over; says whether it was."""
        found = await self._look(row)
        if isinstance(found, Ending):
            await self._end(row, found)
        return isinstance(found, Ending)

    async def _settle_or_start(self, row: RunRow) -> bool:
        """The same; and start it if it never was, unless it was asked to stop: then that is its end."""
        found = await self._look(row)
        if found is None and (row.cancel_requested_at or row.terminate_requested_at):
            found = CANCELLED if row.terminate_requested_at is None else TERMINATED
        if isinstance(found, Ending):
            await self._end(row, found)
        elif found is None:
            await self._commands.start(run_start(row, self._routes))
        return found != "living"

    async def _look(self, row: RunRow) -> Ending | Literal["living"] | None:
        """What became of the workflow of the run's newest attempt; None: it was never started."""
        try:
            found = await self._client.get_workflow_handle(row.id).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None if row.status == RunStatus.QUEUED else FORGOTTEN
        retried = row.status == RunStatus.QUEUED and row.attempt > 1
        if retried and await attempt_of(self._client, found.id, found.run_id) < row.attempt:
            return None  # it is the attempt before, perhaps about to close
        if found.status is None or found.status == WorkflowExecutionStatus.RUNNING:
            return "living"
        return _ENDINGS.get(found.status, _ENDINGS[WorkflowExecutionStatus.FAILED])

    async def _closed(self, since: datetime) -> AsyncIterator[list[str]]:
        endings = "ExecutionStatus IN ('Canceled', 'Terminated', 'Failed', 'TimedOut')"
        query = f"WorkflowType = 'agent_run' AND {endings} AND CloseTime > '{since.isoformat()}'"
        found: list[str] = []
        async for execution in self._client.list_workflows(query, page_size=LISTED):
            found.append(execution.id)
            if len(found) == LISTED:
                yield found
                found = []
        if found:
            yield found

    async def _running(self, run_ids: Iterable[str]) -> set[str]:
        ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
        query = f"ExecutionStatus = 'Running' AND WorkflowId IN ({ids})"
        return {execution.id async for execution in self._client.list_workflows(query, page_size=PAGE)}

    async def _end(self, row: RunRow, ending: Ending) -> None:
        outcome = FinishInput(
            run_id=row.id,
            session_id=row.session_id,
            attempt=row.attempt,
            status=ending.status,
            stop_type=ending.stop,
            error_code=ending.code,
            error_message=ending.message,
            retryable=ending.status == "failed",
        )
        async with self._database.write() as transaction:
            result = await finish(transaction, outcome, self._routes)
        log.info("settled %s as %s", row.id, ending.status)
        if result.next_run is not None:
            await self._commands.start(result.next_run)

    async def _take_over(self, session_id: str, over_run_id: str) -> bool:
        """Hand a session on whose active run is none, to the turn that waits longest."""
        async with self._database.write() as transaction:
            following = await Queues(transaction.connection).take_over(session_id, over_run_id)
        log.warning("session %s named %s as its active run", session_id, over_run_id or "none")
        if following is not None:
            await self._commands.start(run_start(following, self._routes))
        return True


def _may_be_over(active: Active) -> bool:
    """Not where it is over by our own rows, has only just changed, or is what `_start_unstarted` does."""
    if active.status is None or active.touched_at is None or active.status in FINISHED:
        return False
    if active.status == RunStatus.QUEUED and active.workflow_seen_at is None:
        return False
    return active.touched_at < now() - DELIVERY
