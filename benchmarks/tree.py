"""How long it takes until all of a tree of sub-agents is paused, cancelled or terminated."""

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Figure, Report, Size, kept, percentile
from benchmarks.model_server import ModelServer
from benchmarks.service import Perdure, perdure
from benchmarks.sides import INTO_THE_CALL_SECONDS

SECONDS = 1.0
VERBS = {"pause": "run.paused", "cancel": "run.cancelled", "terminate": "run.terminated"}
"""Commands, and the event with which each run of the tree confirms it."""
_LEAVES, _RUNS = 4, 7


def _delegate(agent: str, task: str) -> dict[str, Any]:
    return {"name": "delegate", "input": {"agent": agent, "task": task}}


def _script() -> str:
    """A run, two below it that delegate on, and at every level a sub-agent that waits for its model."""
    leaf = _delegate("leaf", "hello")
    steps = json.dumps({"script": [{"tools": [leaf, leaf]}]})
    for _ in range(2):
        steps = json.dumps({"script": [{"tools": [leaf, _delegate("lead", steps)]}]})
    return steps


async def measure(size: Size) -> Report:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        models = await stack.enter_async_context(ModelServer().running())
        service = await stack.enter_async_context(perdure(folder, models.url))
        return await stopped(service, models, size)


async def stopped(service: Perdure, models: ModelServer, size: Size) -> Report:
    leaf = await service.agent("leaf", "bench:tokens-100000")
    roster = {"agents": [leaf, {"type": "self"}]}
    lead = (await service.post("/v1/agents", {"name": "lead", "model": "demo:script", "multiagent": roster}))["id"]
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(size.stops):
        for verb in VERBS:
            samples[verb].append(await _stopped(service, models, lead, verb))
    return Report([_figure(verb, took) for verb, took in samples.items()], "–", _MEASURED.format(stops=size.stops))


async def _stopped(service: Perdure, models: ModelServer, lead: str, verb: str) -> float:
    """Seconds from the POST to a viewer's having the last run's confirmation. Raises where a model call goes on."""
    session = await service.session(lead)
    async with service.watch(session) as viewer:
        run = await service.send(session, _script())
        writing: set[str] = set()
        async for seen in viewer.frames():
            if seen.event == "event_delta":
                writing.add(seen.json()["event_id"])
            if len(writing) == _LEAVES:
                break
        while not models.hung_up.empty():
            models.hung_up.get_nowait()
        await asyncio.sleep(INTO_THE_CALL_SECONDS)
        asked = time.monotonic_ns()
        asking = asyncio.create_task(service.post(f"/v1/runs/{run}/{verb}", {"mode": "now"} if verb == "pause" else {}))
        told = asked
        async with asyncio.timeout(60):
            for _ in range(_RUNS):
                told = (await viewer.until(VERBS[verb])).at
        await asking
        if models.hung_up.qsize() < _LEAVES:
            raise AssertionError(f"{run} is said to be stopped, and a model call below it goes on")
        if verb == "pause":
            await service.post(f"/v1/runs/{run}/cancel", {})
    return (told - asked) / 1e9


def _figure(verb: str, took: list[float]) -> Figure:
    p95 = percentile(took, 0.95)
    value = f"{p95 * 1000:.0f} (median {median(took) * 1000:.0f})"
    return Figure(f"{verb}: all of the tree, p95 ms", value, f"≤ {SECONDS * 1000:.0f}", kept(p95 <= SECONDS))


_MEASURED = """
`perdure up` on SQLite, {stops} trees for each command, all commands in turns: a run with six sub-agents on three levels below
it, of which the four that delegate nothing are in the middle of a streaming model call. From sending the POST (`pause` with
mode `now`) to a viewer's having the confirmation of the last of the seven; the model server has seen all four callers hang up.
"""
