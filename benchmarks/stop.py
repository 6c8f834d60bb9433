"""How long it takes to stop a run, whatever it is doing: from asking for it to its end's being told, when it is really over."""

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import Figure, Report, Size, kept, percentile
from benchmarks.model_server import ModelServer
from benchmarks.service import Perdure, perdure, script
from benchmarks.sides import INTO_THE_CALL_SECONDS
from benchmarks.viewer import Viewer
from commands.temporal_server import binary

WAYS = {"the API": 1.0, "the Temporal CLI": 2.0}
"""Who asks, and within how many seconds it must be over."""
_TOOLS = ("dream", "ask_user")
_ASK = json.dumps({"script": [{"tools": [{"name": "ask_user", "input": {"question": "Go on?"}}]}]})
_ENDLESS = json.dumps({"script": [{"text": "word ", "words": 100_000, "delay_ms": 20}]})


@dataclass(frozen=True)
class Going:
    """A run in the middle of something, with a viewer on it."""

    run: str
    viewer: Viewer
    over: Callable[[], bool] = lambda: True
    """Whether what it was doing has ended, seen from outside."""


class Place:
    """Gets runs into the middle of things."""

    def __init__(self, service: Perdure, models: ModelServer) -> None:
        self._service = service
        self._models = models
        self._agents: dict[str, str] = {}

    async def prepare(self) -> None:
        for model in ("bench:tokens-100000", "bench:stall-3", "command:default", "demo:script"):
            tools = _TOOLS if model == "demo:script" else ()
            self._agents[model] = await self._service.agent(model.replace(":", "-"), model, tools=tools)

    @asynccontextmanager
    async def streaming(self) -> AsyncGenerator[Going]:
        async with self._call("bench:tokens-100000") as going:
            yield going

    @asynccontextmanager
    async def stalled(self) -> AsyncGenerator[Going]:
        async with self._call("bench:stall-3") as going:
            yield going

    @asynccontextmanager
    async def _call(self, model: str) -> AsyncGenerator[Going]:
        async with self._started(model, "hello") as (run, viewer, _):
            await viewer.until("event_delta")
            while not self._models.hung_up.empty():
                self._models.hung_up.get_nowait()
            yield Going(run, viewer, lambda: not self._models.hung_up.empty())

    @asynccontextmanager
    async def command(self) -> AsyncGenerator[Going]:
        async with self._started("command:default", "hello") as (run, viewer, _):
            said = (await viewer.until("event_delta")).json()["delta"]["content"]["text"]
            pids = [int(pid) for pid in said.split()]
            if len(pids) != 2 or not all(map(_lives, pids)):
                raise AssertionError(f"the command said {said!r}")
            yield Going(run, viewer, lambda: not any(map(_lives, pids)))

    @asynccontextmanager
    async def tool(self) -> AsyncGenerator[Going]:
        async with self._started("demo:script", script("dream", 1)) as (run, viewer, session):
            await viewer.until("agent.tool_use")
            files = Path(self._service.environment["PERDURE_DATA_DIR"]) / "files"
            yield Going(run, viewer, lambda: bool(list(files.glob(f"*/{session}/woken"))))

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[Going]:
        async with self._started("demo:script", _ASK) as (run, viewer, _):
            await viewer.until("agent.question")
            yield Going(run, viewer)

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[Going]:
        async with self._started("demo:script", _ENDLESS) as (run, viewer, _):
            await viewer.until("event_delta")
            await self._service.post(f"/v1/runs/{run}/pause", {"mode": "now"})
            await viewer.until("run.paused")
            yield Going(run, viewer)

    @asynccontextmanager
    async def _started(self, model: str, text: str) -> AsyncGenerator[tuple[str, Viewer, str]]:
        """The run, a viewer on it, and its session."""
        session = await self._service.session(self._agents[model])
        run = await self._service.send(session, text)
        async with self._service.watch_run(run) as viewer:
            yield run, viewer, session


async def measure(size: Size) -> Report:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        models = await stack.enter_async_context(ModelServer().running())
        service = await stack.enter_async_context(perdure(folder, models.url))
        return await stopped(service, models, size)


async def stopped(service: Perdure, models: ModelServer, size: Size) -> Report:
    place = Place(service, models)
    await place.prepare()
    kinds = {
        "a streaming model call": place.streaming,
        "a stalled model call": place.stalled,
        "a command as the model": place.command,
        "a running tool": place.tool,
        "a wait for input": place.waiting,
        "a paused run": place.paused,
    }
    samples: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(size.stops):  # all kinds in turns, so that a slower minute of the machine is everybody's
        for name, kind in kinds.items():
            for way in WAYS:
                async with kind() as going:
                    await asyncio.sleep(INTO_THE_CALL_SECONDS)
                    samples[way, name].append(await _cancelled(service, going, way))
    return Report([_figure(*key, took) for key, took in sorted(samples.items())], "–", _MEASURED.format(stops=size.stops))


async def _cancelled(service: Perdure, going: Going, way: str) -> float:
    """Seconds from asking to a viewer's `run.cancelled`. Raises where what the run did goes on."""
    asked = time.monotonic_ns()
    asking = asyncio.create_task(_ask(service, going.run, way))
    told = await asyncio.wait_for(going.viewer.until("run.cancelled"), 60)
    if not going.over():
        raise AssertionError(f"{going.run} is said to be cancelled, and what it did goes on")
    await asking
    return (told.at - asked) / 1e9


async def _ask(service: Perdure, run: str, way: str) -> None:
    if way == "the API":
        await service.post(f"/v1/runs/{run}/cancel", {})
        return
    argv = [binary(), "workflow", "cancel", "-w", run, "--address", service.temporal_address]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await process.communicate()
    if process.returncode:
        raise AssertionError(f"temporal workflow cancel: {output.decode()}")


def _figure(way: str, name: str, took: list[float]) -> Figure:
    p95, most = percentile(took, 0.95), WAYS[way]
    value = f"{p95 * 1000:.0f} (median {median(took) * 1000:.0f})"
    return Figure(f"cancel from {way}: {name}, p95 ms", value, f"≤ {most * 1000:.0f}", kept(p95 <= most))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


_MEASURED = """
`perdure up` on SQLite, {stops} runs of each kind and way, all kinds in turns, each cancelled {into} s into what it does. From
sending the POST, or from starting `temporal workflow cancel` (its own start-up is in it), to a viewer's having `run.cancelled`.
That is only said when it is true, which is checked each time from outside: the model server has seen its caller hang up, both
of the command's processes are gone, the tool has been woken.
""".replace("{into}", str(INTO_THE_CALL_SECONDS))
