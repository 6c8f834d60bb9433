"""The two sides that are measured, figure by figure. Every method gives plain samples; the caller repeats and takes turns."""

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from uuid import uuid4

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory

from benchmarks.floor import FloorCancel, FloorRun, FloorStart, Steps
from benchmarks.model_server import ModelServer
from benchmarks.service import Perdure, script
from benchmarks.viewer import Seen, Viewer

STEPS = 40
AT_ONCE = 8
VIEWERS = 20
TOKENS = 100
STARTS = 10
CANCELS = 10
INTO_THE_CALL_SECONDS = 0.3
"""How long a call has been under way when it is cancelled."""
OVER = ("run.completed", "run.failed", "run.cancelled", "run.terminated")


@dataclass(frozen=True)
class History:
    """A run's Temporal history: its bytes, those of an early and of a late step, and how long workflow tasks waited."""

    size: int
    first_ten: float
    last_ten: float
    wait_ms: float
    """From a workflow task's being scheduled to a worker's having it, median. Nobody works meanwhile: in there the extra
    work of a slower side disappears."""


class Floor:
    """The bare Temporal program. Its worker runs elsewhere; here its workflows are started and awaited."""

    def __init__(self, temporal: Client, queue: str, pid: int) -> None:
        self.pid = pid
        self._temporal = temporal
        self._queue = queue

    async def run(self) -> float:
        """Seconds that one run of `STEPS` steps takes."""
        began = time.monotonic()
        await self._run()
        return time.monotonic() - began

    async def runs_at_once(self) -> float:
        """Steps per second of `AT_ONCE` runs."""
        began = time.monotonic()
        await asyncio.gather(*(self._run() for _ in range(AT_ONCE)))
        return AT_ONCE * STEPS / (time.monotonic() - began)

    async def history(self) -> History:
        return await _history(self._temporal, await self._run(), "model")

    async def starts(self) -> list[float]:
        """Seconds from asking for a run to its first activity."""
        samples: list[float] = []
        for _ in range(STARTS):
            asked = time.monotonic_ns()
            begun = await self._temporal.execute_workflow(FloorStart.run, id=_id(), task_queue=self._queue)
            samples.append((begun - asked) / 1e9)
        return samples

    async def cancels(self) -> list[float]:
        """Seconds from asking for a cancellation to the activity's end."""
        samples: list[float] = []
        for _ in range(CANCELS):
            handle = await self._temporal.start_workflow(FloorCancel.run, id=_id(), task_queue=self._queue)
            await asyncio.sleep(INTO_THE_CALL_SECONDS)
            asked = time.monotonic_ns()
            await handle.cancel()
            samples.append((await handle.result() - asked) / 1e9)
        return samples

    async def _run(self) -> str:
        id = _id()
        await self._temporal.execute_workflow(FloorRun.run, Steps(id, STEPS), id=id, task_queue=self._queue)
        return id


class PerdureSide:
    """The service, through its front door, with a viewer on every run."""

    def __init__(self, service: Perdure, temporal: Client, models: ModelServer) -> None:
        self.pid = service.pid
        self._service = service
        self._temporal = temporal
        self._models = models
        self._agents: dict[str, str] = {}

    async def prepare(self) -> None:
        agent = self._service.agent
        self._agents["steps"] = await agent("steps", "demo:script", tools=("note", "page"), max_steps=STEPS)
        self._agents["one"] = await agent("one", "bench:tokens-1")
        self._agents["many"] = await agent("many", f"bench:tokens-{TOKENS}")
        self._agents["endless"] = await agent("endless", "bench:tokens-100000")

    async def run(self) -> float:
        """Seconds from sending the message to a viewer's seeing the end of the run."""
        session = await self._session("steps")
        async with self._service.watch(session) as viewer:
            began = time.monotonic()
            await self._run(session, viewer, "note")
            return time.monotonic() - began

    async def runs_at_once(self) -> float:
        """Steps per second of `AT_ONCE` runs, each in a session of its own."""
        sessions = [await self._session("steps") for _ in range(AT_ONCE)]

        async def one(session: str) -> None:
            async with self._service.watch(session) as viewer:
                await self._run(session, viewer, "note")

        began = time.monotonic()
        await asyncio.gather(*(one(session) for session in sessions))
        return AT_ONCE * STEPS / (time.monotonic() - began)

    async def history(self) -> History:
        """Of a run whose every step reads 5 KB."""
        session = await self._session("steps")
        async with self._service.watch(session) as viewer:
            run = await self._run(session, viewer, "page")
        return await _history(self._temporal, run, "model.complete")

    async def starts(self) -> list[float]:
        """Seconds from sending a message to a viewer's seeing that the model is called."""
        session = await self._session("one")
        samples: list[float] = []
        for _ in range(STARTS):
            async with self._service.watch(session) as viewer:
                asked = time.monotonic_ns()
                sending = asyncio.create_task(self._service.send(session, "hello"))
                seen = await viewer.until("span.model_request_start")
                samples.append((seen.at - asked) / 1e9)
                await sending
                await viewer.until(*OVER)
        return samples

    async def tokens(self) -> list[float]:
        """Seconds from the model server's writing a token to each of `VIEWERS` viewers' having it."""
        session = await self._session("many")
        opened = asyncio.Semaphore(0)
        seen: list[Seen] = []

        async def watch() -> None:
            async with self._service.watch(session) as viewer:
                opened.release()
                async for frame in viewer.frames():
                    if frame.event == "event_delta":
                        seen.append(frame)
                    elif frame.event in OVER:
                        return

        watching = [asyncio.create_task(watch()) for _ in range(VIEWERS)]
        for _ in watching:
            await opened.acquire()
        await self._service.send(session, "hello")
        await asyncio.gather(*watching)
        samples = [(frame.at - stamp) / 1e9 for frame in seen for stamp in _stamps(frame)]
        if len(samples) != VIEWERS * TOKENS:
            raise AssertionError(f"{VIEWERS} viewers saw {len(samples)} tokens, not {TOKENS} each")
        return samples

    async def cancels(self) -> list[float]:
        """Seconds from asking for a cancellation to the model server's seeing its caller hang up."""
        session = await self._session("endless")
        samples: list[float] = []
        for _ in range(CANCELS):
            async with self._service.watch(session) as viewer:
                run = await self._service.send(session, "hello")
                await viewer.until("event_delta")
                await asyncio.sleep(INTO_THE_CALL_SECONDS)
                asked = time.monotonic_ns()
                cancelling = asyncio.create_task(self._service.post(f"/v1/runs/{run}/cancel", {}))
                samples.append((await asyncio.wait_for(self._models.hung_up.get(), 60) - asked) / 1e9)
                await cancelling
                await viewer.until(*OVER)
        return samples

    async def _session(self, agent: str) -> str:
        return await self._service.session(self._agents[agent])

    async def _run(self, session: str, viewer: Viewer, tool: str) -> str:
        """A run of `STEPS` steps, each one call of the tool; the run's id."""
        sending = asyncio.create_task(self._service.send(session, script(tool, STEPS)))
        over = await viewer.until(*OVER)
        content = over.json()
        if (over.event, content["stop_reason"]["type"]) != ("run.completed", "max_steps"):
            raise AssertionError(f"the run ended otherwise: {content}")
        return await sending


async def _history(temporal: Client, run: str, model: str) -> History:
    handle = temporal.get_workflow_handle(run)
    history = await handle.fetch_history()
    steps = _steps(history, model)
    size = (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes
    return History(size, sum(steps[:10]) / 10, sum(steps[-10:]) / 10, _wait_ms(history))


def _steps(history: WorkflowHistory, model: str) -> list[int]:
    """Bytes of each step but the last: from its model call's being scheduled to the next one's."""
    scheduled = [
        index
        for index, event in enumerate(history.events)
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == model
    ]
    if len(scheduled) != STEPS:
        raise AssertionError(f"{len(scheduled)} model calls in a history of {STEPS} steps")
    return [sum(event.ByteSize() for event in history.events[begin:end]) for begin, end in pairwise(scheduled)]


def _wait_ms(history: WorkflowHistory) -> float:
    return median(
        (after.event_time.ToNanoseconds() - before.event_time.ToNanoseconds()) / 1e6
        for before, after in pairwise(history.events)
        if before.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED
        and after.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
    )


def _stamps(frame: Seen) -> list[int]:
    return [int(stamp) for stamp in frame.json()["delta"]["content"]["text"].split()]


def _id() -> str:
    return f"floor-{uuid4().hex}"
