"""Starting, signalling and asking runs. Every call is idempotent: the workflow's id is the run's."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from typing import Literal, TypeVar

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.executions import attempt_of
from domain.batches import WorkRef
from domain.commands import ApproveSignal, InputSignal, PauseSignal, RunStart, RunState, TitleStart
from domain.errors import Unavailable
from domain.ids import settle_id, title_id
from workflows import attributes, options
from workflows.agent_run import AgentRun
from workflows.sweep import Settle, Sweep
from workflows.titles import SessionTitle

log = logging.getLogger(__name__)

TASK_QUEUE = "perdure"
SWEEPER_EVERY = timedelta(minutes=1)
SWEEPER_STUCK = timedelta(hours=1)
KEPT_EVERY_SECONDS = 30
"""How soon a schedule that somebody deleted is made again."""
RPC_SECONDS = 3.0
CLOSING_TRIES, CLOSING_SECONDS = 20, 0.1

T = TypeVar("T")
_GONE = (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION)


class RunClient:
    """The only way from our code to a run's workflow. Raises Unavailable while Temporal cannot be reached."""

    def __init__(self, client: Client, task_queue: str = TASK_QUEUE) -> None:
        self._client = client
        self._task_queue = task_queue
        self._rpc = timedelta(seconds=RPC_SECONDS)

    async def start(self, start: RunStart) -> None:
        """Start the run's workflow; starting it again is starting it once."""
        with contextlib.suppress(WorkflowAlreadyStartedError):
            if start.attempt == 1:
                await self._start(start, WorkflowIDReusePolicy.REJECT_DUPLICATE)
            else:
                await self._start_again(start)

    async def _start_again(self, start: RunStart) -> None:
        """A retry. The workflow of the attempt before has said that it is over, and may not have closed yet."""
        for _ in range(CLOSING_TRIES):
            try:
                await self._start(start, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
                return
            except WorkflowAlreadyStartedError:
                if await self._reach(attempt_of(self._client, start.run_id)) >= start.attempt:
                    raise
            await asyncio.sleep(CLOSING_SECONDS)
        raise Unavailable("The attempt before this one has not ended yet.")

    async def _start(self, start: RunStart, reuse: WorkflowIDReusePolicy) -> None:
        await self._reach(
            self._client.start_workflow(
                AgentRun.run,
                start,
                id=start.run_id,
                task_queue=self._task_queue,
                id_reuse_policy=reuse,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                search_attributes=attributes.of(start),
                priority=options.of_run(start),
                static_summary=f"{start.agent} on {start.model}",
                rpc_timeout=self._rpc,
            )
        )

    async def work_on(self, ref: WorkRef) -> None:
        """Start what carries out a batch or a bulk operation; starting it again is starting it once."""
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._reach(
                self._client.start_workflow(
                    ref.kind,
                    ref,
                    id=ref.id,
                    task_queue=self._task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    search_attributes=attributes.of_workspace(ref.workspace_id),
                    priority=options.priority(ref.workspace_id, background=True),
                    rpc_timeout=self._rpc,
                )
            )

    async def pause(self, run_id: str, mode: Literal["step", "now"]) -> None:
        handle = self._client.get_workflow_handle_for(AgentRun.run, run_id)
        await self._deliver(handle.signal(AgentRun.pause, PauseSignal(mode=mode), rpc_timeout=self._rpc))

    async def resume(self, run_id: str) -> None:
        handle = self._client.get_workflow_handle_for(AgentRun.run, run_id)
        await self._deliver(handle.signal(AgentRun.resume, rpc_timeout=self._rpc))

    async def cancel(self, run_id: str) -> None:
        """Temporal's own cancellation, so that its UI shows the run as canceled. The reason is in our row."""
        await self._deliver(self._client.get_workflow_handle(run_id).cancel(rpc_timeout=self._rpc))

    async def input(self, run_id: str, event_id: str, tool_use_id: str) -> None:
        handle = self._client.get_workflow_handle_for(AgentRun.run, run_id)
        signal = InputSignal(event_id=event_id, tool_use_id=tool_use_id)
        await self._deliver(handle.signal(AgentRun.input, signal, rpc_timeout=self._rpc))

    async def approve(self, run_id: str, decision: ApproveSignal) -> None:
        handle = self._client.get_workflow_handle_for(AgentRun.run, run_id)
        await self._deliver(handle.signal(AgentRun.approve, decision, rpc_timeout=self._rpc))

    async def terminate(self, run_id: str, reason: str | None) -> None:
        """Kill the workflow, then have its rows settled at once."""
        await self._deliver(self._client.get_workflow_handle(run_id).terminate(reason=reason, rpc_timeout=self._rpc))
        await self.settle(run_id)

    async def settle(self, run_id: str) -> None:
        await self._reach(
            self._client.start_workflow(
                Settle.run,
                run_id,
                id=settle_id(run_id),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                rpc_timeout=self._rpc,
            )
        )

    async def start_title(self, start: TitleStart) -> None:
        """Have a session named; that happens once."""
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._reach(
                self._client.start_workflow(
                    SessionTitle.run,
                    start,
                    id=title_id(start.session_id),
                    task_queue=self._task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    search_attributes=attributes.of_session(start.workspace_id, start.session_id, start.model),
                    static_summary=f"title by {start.model}",
                    rpc_timeout=self._rpc,
                )
            )

    async def state(self, run_id: str) -> RunState:
        return await self._reach(
            self._client.get_workflow_handle_for(AgentRun.run, run_id).query(AgentRun.state, rpc_timeout=self._rpc)
        )

    async def reachable(self) -> bool:
        try:
            return await self._client.service_client.check_health(timeout=timedelta(seconds=1))
        except (RPCError, RuntimeError):
            return False

    async def keep_sweeper(self) -> None:
        """See to it that the sweeper's schedule exists, as this release has it; runs until it is cancelled."""
        change = True
        while True:
            try:
                await self._ensure_sweeper(change=change)
                change = False
            except RPCError as error:
                log.warning("the sweeper's schedule cannot be looked at now, trying again: %s", error)
            await asyncio.sleep(KEPT_EVERY_SECONDS)

    async def _ensure_sweeper(self, *, change: bool) -> None:
        """`change`: bring one that exists, perhaps of an earlier release, to today's form; paused stays paused."""
        # Deployments that share a namespace differ in their task queue, and each needs a sweeper of its own.
        id = f"{self._task_queue}-sweep"
        schedule = Schedule(
            # The time-out frees the place of a sweep that is stuck for good, as after a deployment that it cannot replay.
            action=ScheduleActionStartWorkflow(Sweep.run, id=id, task_queue=self._task_queue, run_timeout=SWEEPER_STUCK),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=SWEEPER_EVERY)]),
            # One at a time, and the next begins as soon as one ends.
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.BUFFER_ONE, catchup_window=timedelta(minutes=1)),
        )
        try:
            await self._client.create_schedule(id, schedule, trigger_immediately=True)
        except ScheduleAlreadyRunningError:
            if change:
                handle = self._client.get_schedule_handle(id)
                await handle.update(
                    lambda found: ScheduleUpdate(replace(schedule, state=found.description.schedule.state)),
                    rpc_timeout=self._rpc,
                )

    async def _deliver(self, call: Awaitable[None]) -> None:
        """A workflow that is gone needs no command any more."""
        try:
            await self._reach(call)
        except RPCError as error:
            if error.status not in _GONE:
                raise

    async def _reach(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(RPC_SECONDS + 1):
                return await call
        except TimeoutError as error:
            raise Unavailable("Temporal did not answer in time.") from error
        except RuntimeError as error:  # what the SDK raises where a lazy client cannot connect
            raise Unavailable("Temporal cannot be reached.") from error
        except RPCError as error:
            if error.status in _GONE:
                raise
            raise Unavailable(f"Temporal cannot take this now ({error.status.name}).") from error
