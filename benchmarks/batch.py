"""A batch of the most inputs that one call takes, from the call to its last result, and who waits for an answer meanwhile."""

import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from temporalio.client import Client

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept
from benchmarks.seeds import MODEL
from benchmarks.service import Perdure, perdure

INPUT = "hello"
AT_ONCE = 100
LOOK_SECONDS = 5.0
"""Between two runs of somebody who waits."""


async def measure(size: Size) -> Report:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        async with perdure(Path(name)) as service:
            figures = await carried_out(service, size.inputs, LOOK_SECONDS)
    return Report(figures, "–", _MEASURED.format(at_once=AT_ONCE, seconds=LOOK_SECONDS), f"{size.inputs:,} inputs")


_MEASURED = """
One `POST /v1/batches` to `perdure up` on SQLite, each input one model call of the offline model, {at_once} at work at once. Its
stream is read to its end, then its results. Every {seconds:.0f} s somebody starts a run of the same agent and waits for it.
"""


async def carried_out(service: Perdure, inputs: int, look_seconds: float) -> list[Figure]:
    agent = await service.agent("batched", MODEL)
    body = {"agent": agent, "inputs": [INPUT] * inputs, "max_concurrent": AT_ONCE}
    used, began = cpu_seconds(service.pid), time.perf_counter()
    batch = (await service.http.post("/v1/batches", json=body)).raise_for_status().json()
    accepted = time.perf_counter() - began
    beside: list[float] = []
    somebody = asyncio.create_task(_wait_for_runs(service, agent, look_seconds, beside))
    told = await _followed(service, batch["links"]["stream"])
    took = time.perf_counter() - began
    cpu = cpu_seconds(service.pid) - used
    if somebody.done():
        somebody.result()  # raises: it ends in no other way
    somebody.cancel()
    began = time.perf_counter()
    lines = (await service.http.get(batch["links"]["results"])).raise_for_status().text.splitlines()
    read = time.perf_counter() - began
    results = [json.loads(line) for line in lines]
    if [result["index"] for result in results] != list(range(inputs)):
        raise AssertionError("the results are not in the order of the inputs")
    ended = Counter(result["status"] for result in results)
    temporal = await Client.connect(service.temporal_address)
    history = (await temporal.get_workflow_handle(batch["id"]).fetch_history()).events
    return [
        Figure("inputs with the result `completed`", str(ended["completed"]), str(inputs), kept(ended["completed"] == inputs)),
        Figure("ends told in its stream, each once", str(len(told)), str(inputs), kept(sorted(told) == list(range(inputs)))),
        Figure("the call, s", f"{accepted:.2f}"),
        Figure("from the call to its last event, s", f"{took:.1f}"),
        Figure("inputs per second", f"{inputs / took:.1f}"),
        Figure("… CPU of the process, ms per input", f"{cpu / inputs * 1000:.1f}"),
        Figure("all results, s", f"{read:.2f}"),
        Figure(f"a run beside it ({len(beside)} of them), median s", f"{median(beside):.2f}" if beside else "–"),
        Figure("… the slowest, s", f"{max(beside):.2f}" if beside else "–"),
        Figure("its history in Temporal, events", str(len(history))),
    ]


async def _followed(service: Perdure, path: str) -> list[int]:
    """The indexes of all items whose end its stream tells, to its end."""
    told: list[int] = []
    async with service.http.stream("GET", path, timeout=None) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                told += [item["index"] for item in event.get("finished", ())]
                if event["type"] == "done":
                    return told
    raise AssertionError("its stream ended without `done`")


async def _wait_for_runs(service: Perdure, agent: str, pause: float, samples: list[float]) -> None:
    while True:
        await asyncio.sleep(pause)
        began = time.perf_counter()
        run = (await service.http.post("/v1/runs", json={"agent": agent, "input": INPUT})).raise_for_status().json()
        await service.get(f"/v1/runs/{run['id']}/wait?timeout_seconds=60")
        samples.append(time.perf_counter() - began)
