"""Very many runs that wait for a person: what they cost while nothing happens, and whether they still answer."""

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept, own_memory
from benchmarks.service import Perdure, perdure
from benchmarks.sides import OVER

AT_ONCE = 16
"""Runs that are being started at a time."""
SETTLE_SECONDS = 30
"""From the last start to the first look: Temporal still writes, and lets go of what it keeps for finished tasks."""
MAX_CPU = 0.010
MAX_GROWTH = 0.01
MAX_ANSWER_SECONDS = 1
ANSWERS = 5
_SCRIPT = json.dumps({"script": [{"tools": [{"name": "ask_user", "input": {"question": "Go on?"}}]}, {"text": "Thank you."}]})


@dataclass(frozen=True)
class Cost:
    """What the service costs: its process (API and worker), and Temporal."""

    process: float
    """Seconds of the processor per second."""
    temporal: float
    memory: int
    """Bytes of the process, without mapped files."""


async def measure(size: Size) -> Report:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        async with perdure(Path(name)) as service:
            return await waiting_runs(service, size)


async def waiting_runs(service: Perdure, size: Size) -> Report:
    agent = await service.agent("asks", "demo:script", tools=("ask_user",))
    for _ in range(ANSWERS):
        await _answered(service, await _started(service, agent))
    before = await _watched(service, size)
    runs = await _many(service, agent, size.waiting)
    await asyncio.sleep(min(SETTLE_SECONDS, size.window_seconds))
    waiting = await _count(service, agent)
    after = await _watched(service, size)
    picked = runs[:: max(1, len(runs) // ANSWERS)][:ANSWERS]
    answers = [await _answered(service, run) for run in picked]
    left = await _count(service, agent)
    if (waiting, left) != (size.waiting, size.waiting - len(picked)):
        raise AssertionError(f"{waiting} of {size.waiting} runs waited, and {left} after {len(picked)} answers")
    return Report(
        _figures(size.waiting, before, after, answers), "no runs", _MEASURED.format(runs=size.waiting, **_numbers(size))
    )


def _figures(runs: int, before: list[Cost], after: list[Cost], answers: list[float]) -> list[Figure]:
    def cpu(name: str, first: float, then: float, most: float | None) -> Figure:
        target, verdict = ("–", "") if most is None else (f"≤ {most * 1000:.0f} more", kept(then - first <= most))
        return Figure(name, f"{then * 1000:.1f}", target, verdict, f"{first * 1000:.1f}")

    all_of = [median(cost.process + cost.temporal for cost in costs) for costs in (before, after)]
    own = [median(cost.process for cost in costs) for costs in (before, after)]
    growth = after[-1].memory / after[0].memory - 1
    each = (after[0].memory - before[-1].memory) / runs
    return [
        cpu(f"CPU while {runs:,} runs wait, ms per second", all_of[0], all_of[1], MAX_CPU),
        cpu("… of worker and API alone", own[0], own[1], None),
        Figure(
            "worker and API, memory from first to last look, MB",
            f"{after[0].memory / 1e6:.1f} → {after[-1].memory / 1e6:.1f}",
            f"≤ {MAX_GROWTH:.0%} more",
            kept(growth <= MAX_GROWTH),
            f"{before[-1].memory / 1e6:.1f}",
        ),
        Figure("… a waiting run in the worker's cache, KB", f"{each / 1000:.1f}"),
        Figure(
            "from an answer to the run's end, ms (the slowest)",
            f"{max(answers) * 1000:.0f}",
            f"≤ {MAX_ANSWER_SECONDS * 1000}",
            kept(max(answers) <= MAX_ANSWER_SECONDS),
        ),
    ]


_MEASURED = """
`perdure up` on SQLite; {runs} runs, each in a session of its own, whose scripted model has asked the user a question.

- **CPU:** of the process (worker and API) and of Temporal, in {rounds} windows of {seconds:.0f} s before the first run and as
  many while all wait; the medians. The sweeper's ten seconds go on in both. All runs wait before and after, counted over HTTP.
- **Memory:** of the process, without mapped files (SQLite maps its own), in the first and in the last of these windows; nothing
  may be added while nothing happens. The growth from before the first run to there is what all of them take in the cache.
- **An answer:** {answers} runs of all ages are answered; from the POST to a viewer's `run.completed`.
"""


def _numbers(size: Size) -> dict[str, float]:
    return {"rounds": size.rounds, "seconds": size.window_seconds, "answers": ANSWERS}


async def _watched(service: Perdure, size: Size) -> list[Cost]:
    """What it costs while nothing happens, once for each round."""
    (temporal,) = psutil.Process(service.pid).children()
    costs: list[Cost] = []
    for _ in range(size.rounds):
        pids = (service.pid, temporal.pid)
        used, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
        await asyncio.sleep(size.window_seconds)
        process, server = ((cpu_seconds(pid) - u) / (time.monotonic() - began) for pid, u in zip(pids, used, strict=True))
        costs.append(Cost(process, server, own_memory(service.pid)))
    return costs


async def _many(service: Perdure, agent: str, count: int) -> list[str]:
    """Start so many runs, and see every one of them wait."""
    runs: list[str] = []
    free, began = asyncio.Semaphore(AT_ONCE), time.monotonic()

    async def start() -> None:
        async with free:
            runs.append(await _started(service, agent))
            if len(runs) % 500 == 0:
                print(f"{len(runs):,} of {count:,} runs after {time.monotonic() - began:.0f} s", flush=True)

    await asyncio.gather(*(start() for _ in range(count)))
    while await _count(service, agent) < count:
        if time.monotonic() - began > 60 + count:
            raise AssertionError("not all runs have come to wait")
        await asyncio.sleep(0.5)
    return runs


async def _started(service: Perdure, agent: str) -> str:
    return (await service.post("/v1/runs", {"agent": agent, "input": _SCRIPT}))["id"]


async def _count(service: Perdure, agent: str) -> int:
    """Runs that wait, by the list of runs."""
    count, page = 0, ""
    while True:
        found = await service.get(f"/v1/runs?agent_id={agent}&status=waiting&limit=100{page}")
        count += len(found["data"])
        if not found["has_more"]:
            return count
        page = f"&page={found['next_page']}"


async def _answered(service: Perdure, run: str) -> float:
    """Seconds from giving a run its answer to a viewer's seeing its end."""
    async with service.watch_run(run) as viewer:
        await viewer.until("agent.question")
        began = time.monotonic()
        answering = asyncio.create_task(service.post(f"/v1/runs/{run}/input", {"content": "yes"}))
        end = await viewer.until(*OVER)
        took = time.monotonic() - began
        await answering
    if end.event != "run.completed":
        raise AssertionError(f"the run ended otherwise: {end.data}")
    return took
