"""The floor: a bare Temporal program that does what a run does, and nothing besides.

One workflow, per step two activities (a model stub and a tool stub) that pass ids. It runs on the product's own server
settings and worker settings, so that what Perdure costs above it is Perdure's.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

STEPS = 40
RUNS_AT_ONCE = 8
HEARTBEAT = timedelta(seconds=1)
LIMIT = timedelta(minutes=5)


@dataclass(frozen=True)
class RunInput:
    run_id: str
    steps: int


@dataclass(frozen=True)
class StepInput:
    run_id: str
    step: int


class Stubs:
    """Activities that only note when they began and ended; seconds on this process's clock."""

    def __init__(self) -> None:
        self.began: defaultdict[str, asyncio.Future[float]] = defaultdict(asyncio.Future)
        self.ended: defaultdict[str, asyncio.Future[float]] = defaultdict(asyncio.Future)

    @activity.defn(name="floor.model")
    async def model(self, call: StepInput) -> str:
        if call.step == 0:
            self.began[call.run_id].set_result(perf_counter())
        return f"{call.run_id}/{call.step}/model"

    @activity.defn(name="floor.tool")
    async def tool(self, call: StepInput) -> str:
        return f"{call.run_id}/{call.step}/tool"

    @activity.defn(name="floor.hang")
    async def hang(self, run_id: str) -> None:
        """A model call in flight: it ends when it is cancelled."""
        self.began[run_id].set_result(perf_counter())
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(HEARTBEAT.total_seconds() / 10)
        finally:
            self.ended[run_id].set_result(perf_counter())


@workflow.defn(name="FloorRun")
class FloorRun:
    @workflow.run
    async def run(self, run: RunInput) -> int:
        for step in range(run.steps):
            call = StepInput(run.run_id, step)
            await workflow.execute_activity_method(Stubs.model, call, start_to_close_timeout=LIMIT)
            await workflow.execute_activity_method(Stubs.tool, call, start_to_close_timeout=LIMIT)
        return run.steps


@workflow.defn(name="FloorHang")
class FloorHang:
    @workflow.run
    async def run(self, run_id: str) -> None:
        await workflow.execute_activity_method(
            Stubs.hang,
            run_id,
            start_to_close_timeout=LIMIT,
            heartbeat_timeout=HEARTBEAT,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class Floor:
    """The measurements. Each is one round; the caller repeats, and interleaves them with the product's."""

    def __init__(self, client: Client, queue: str, stubs: Stubs) -> None:
        self._client = client
        self._queue = queue
        self._stubs = stubs

    async def step_ms(self) -> float:
        """Milliseconds a step, one run at a time."""
        started = perf_counter()
        await (await self._start()).result()
        return (perf_counter() - started) * 1000 / STEPS

    async def steps_per_second(self) -> float:
        """Steps of all runs together, with RUNS_AT_ONCE of them started at once."""
        started = perf_counter()
        handles = await asyncio.gather(*(self._start() for _ in range(RUNS_AT_ONCE)))
        await asyncio.gather(*(handle.result() for handle in handles))
        return RUNS_AT_ONCE * STEPS / (perf_counter() - started)

    async def history_bytes(self) -> float:
        """What the server says it keeps of a run of STEPS steps."""
        handle = await self._start()
        await handle.result()
        return (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes

    async def start_ms(self) -> float:
        """Milliseconds from asking for a run to its first activity."""
        asked = perf_counter()
        handle = await self._start(steps=1)
        began = await self._stubs.began[handle.id]
        await handle.result()
        return (began - asked) * 1000

    async def cancel_ms(self) -> float:
        """Milliseconds from asking for the end of a run to the end of the activity in flight, which heartbeats every second."""
        run_id = _new_id()
        handle = await self._client.start_workflow(FloorHang.run, run_id, id=run_id, task_queue=self._queue)
        await self._stubs.began[run_id]
        # A real call has been streaming for a while; the first heartbeats come sooner than the later ones.
        await asyncio.sleep(2 * HEARTBEAT.total_seconds())
        asked = perf_counter()
        await handle.cancel()
        ended = await self._stubs.ended[run_id]
        try:
            await handle.result()
        except WorkflowFailureError:
            return (ended - asked) * 1000
        raise AssertionError("the run completed although it was cancelled")

    async def _start(self, steps: int = STEPS) -> WorkflowHandle[FloorRun, int]:
        run_id = _new_id()
        return await self._client.start_workflow(FloorRun.run, RunInput(run_id, steps), id=run_id, task_queue=self._queue)


@asynccontextmanager
async def floor(address: str) -> AsyncGenerator[Floor]:
    """A worker on the server at `address`, with the product's settings, for as long as the block runs."""
    client, queue, stubs = await Client.connect(address), f"floor-{uuid4().hex[:8]}", Stubs()
    async with Worker(
        client,
        task_queue=queue,
        workflows=[FloorRun, FloorHang],
        activities=[stubs.model, stubs.tool, stubs.hang],
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules("benchmarks")
        ),
        max_concurrent_activities=200,
        max_concurrent_workflow_tasks=16,
        max_cached_workflows=10_000,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    ):
        yield Floor(client, queue, stubs)


def _new_id() -> str:
    return f"run_{uuid4().hex}"
