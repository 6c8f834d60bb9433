"""The floor: a bare Temporal program. Per step two activities, a model stub and a tool stub, that pass ids and do nothing else.

`python -m benchmarks.floor ADDRESS QUEUE` is its worker, a process of its own; the bench starts the workflows, as it sends
HTTP requests to the service.
"""

import asyncio
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import ActivityCancellationType

_TIMEOUT = timedelta(seconds=60)


@dataclass
class Call:
    run_id: str
    step: int


@dataclass
class Steps:
    run_id: str
    steps: int


@activity.defn
async def model(call: Call) -> str:
    return f"toolu_{call.step}"


@activity.defn
async def tool(call: Call) -> None:
    return None


@activity.defn
async def begun() -> int:
    """When it began, on the clock that all processes of a machine share."""
    return time.monotonic_ns()


@activity.defn
async def stopped() -> int:
    """Work until cancelled; when that was, on the shared clock."""
    beating = asyncio.create_task(_beat())
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return time.monotonic_ns()
    finally:
        beating.cancel()
    raise AssertionError("nobody cancelled")


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.5)


@workflow.defn
class FloorRun:
    @workflow.run
    async def run(self, start: Steps) -> None:
        for step in range(start.steps):
            call = Call(start.run_id, step)
            await workflow.execute_activity(model, call, start_to_close_timeout=_TIMEOUT)
            await workflow.execute_activity(tool, call, start_to_close_timeout=_TIMEOUT)


@workflow.defn
class FloorStart:
    @workflow.run
    async def run(self) -> int:
        return await workflow.execute_activity(begun, start_to_close_timeout=_TIMEOUT)


@workflow.defn
class FloorCancel:
    @workflow.run
    async def run(self) -> int:
        call = workflow.start_activity(
            stopped,
            start_to_close_timeout=_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=1),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.cancel()
            return await call


async def main(address: str, queue: str) -> None:
    """Serve the queue, with the service's own limits, until killed."""
    worker = Worker(
        await Client.connect(address),
        task_queue=queue,
        workflows=[FloorRun, FloorStart, FloorCancel],
        activities=[model, tool, begun, stopped],
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules("benchmarks")
        ),
        max_concurrent_activities=200,
        max_concurrent_workflow_tasks=16,
        max_cached_workflows=10_000,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
