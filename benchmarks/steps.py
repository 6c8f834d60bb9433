"""Perdure and a bare Temporal program on the same Temporal server, in turns.

Each side is one process beside the server: for Perdure the real `perdure up` with a viewer on every run, for the floor a
worker. This process asks and watches, and plays the model server.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from temporalio.client import Client

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept, percentile
from benchmarks.model_server import ModelServer
from benchmarks.service import ROOT, child, perdure
from benchmarks.sides import AT_ONCE, CANCELS, STARTS, STEPS, TOKENS, VIEWERS, Floor, History, PerdureSide

MOSTLY_WAITING = 0.5
"""Of the floor's time per step."""


@dataclass
class Samples:
    """What one side gave. Runs and throughput by round, so that a round's two sides can be compared."""

    run: list[float] = field(default_factory=list[float])
    at_once: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    """Seconds of its process per step, with runs at once."""
    starts: list[float] = field(default_factory=list[float])
    cancels: list[float] = field(default_factory=list[float])
    tokens: list[float] = field(default_factory=list[float])

    async def add(self, side: Floor | PerdureSide) -> None:
        self.run.append(await side.run())
        used = cpu_seconds(side.pid)
        self.at_once.append(await side.runs_at_once())
        self.cpu.append((cpu_seconds(side.pid) - used) / (AT_ONCE * STEPS))
        self.starts += await side.starts()
        self.cancels += await side.cancels()
        if isinstance(side, PerdureSide):
            self.tokens += await side.tokens()


async def measure(size: Size) -> Report:
    floor, product = Samples(), Samples()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        models = await stack.enter_async_context(ModelServer().running())
        service = await stack.enter_async_context(perdure(folder, models.url))
        argv = (sys.executable, "-m", "benchmarks.floor", service.temporal_address, "floor")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        worker = await stack.enter_async_context(child(argv, environment, folder, "floor.log"))
        temporal = await Client.connect(service.temporal_address)
        bare, perdured = Floor(temporal, "floor", worker.pid), PerdureSide(service, temporal, models)
        await perdured.prepare()
        print("warming up, and weighing the histories")
        histories = await bare.history(), await perdured.history()
        for number in range(size.rounds):
            print(f"round {number + 1} of {size.rounds}", flush=True)
            sides = [(floor, bare), (product, perdured)]
            # Each goes first in turn, so that a machine that slows down or speeds up favours neither.
            for samples, side in sides if number % 2 == 0 else reversed(sides):
                await samples.add(side)
    return Report(figures(floor, product, *histories), "floor", measured(floor, product, histories[0], size.rounds))


def figures(floor: Samples, product: Samples, bare: History, history: History) -> list[Figure]:
    per_step = _ratio(product.run, floor.run)
    # A floor that mostly waits is no floor: what the other side does more is done while both would wait, and costs nothing.
    waiting = 2 * bare.wait_ms / (median(floor.run) / STEPS * 1000)
    verdict = "inconclusive" if per_step <= 1.25 and waiting > MOSTLY_WAITING else kept(per_step <= 1.25)
    throughput = _ratio(product.at_once, floor.at_once)
    growth = history.last_ten / history.first_ten
    p50, p99 = percentile(product.tokens, 0.50), percentile(product.tokens, 0.99)
    cancel, start = percentile(product.cancels, 0.95), median(product.starts) / median(floor.starts)
    return [
        Figure(
            f"ms per step (1 run, {STEPS} steps)",
            f"{median(product.run) / STEPS * 1000:.1f}",
            "≤ 1.25 ×",
            verdict,
            f"{median(floor.run) / STEPS * 1000:.1f}",
            f"{per_step:.2f}",
        ),
        Figure(
            f"steps per second ({AT_ONCE} runs at once)",
            f"{median(product.at_once):.1f}",
            "≥ 0.85 ×",
            kept(throughput >= 0.85),
            f"{median(floor.at_once):.1f}",
            f"{throughput:.2f}",
        ),
        Figure(
            "… CPU of the process, ms per step",
            f"{median(product.cpu) * 1000:.1f}",
            base=f"{median(floor.cpu) * 1000:.1f}",
            ratio=f"{_ratio(product.cpu, floor.cpu):.2f}",
        ),
        Figure("workflow task's wait for its worker, ms", f"{history.wait_ms:.1f}", base=f"{bare.wait_ms:.1f}"),
        Figure(
            f"history, MB ({STEPS} steps, 5 KB tool results)",
            f"{history.size / 1e6:.3f}",
            "≤ 0.10 MB",
            kept(history.size <= 100_000),
            f"{bare.size / 1e6:.3f}",
            f"{history.size / bare.size:.2f}",
        ),
        Figure(
            "history, bytes per step (first 10, last 10)",
            f"{history.first_ten:.0f}, {history.last_ten:.0f}",
            # Event ids have more digits in a longer history, whatever a step writes.
            "flat (≤ 1.05)",
            kept(growth <= 1.05),
            f"{bare.first_ten:.0f}, {bare.last_ten:.0f}",
            f"{growth:.2f}",
        ),
        Figure(f"token to viewer, p50 ms ({VIEWERS} viewers)", f"{p50 * 1000:.1f}", "≤ 5", kept(p50 <= 0.005)),
        Figure(f"token to viewer, p99 ms ({VIEWERS} viewers)", f"{p99 * 1000:.1f}", "≤ 30", kept(p99 <= 0.030)),
        Figure(
            "cancel to the model call's end, p95 ms",
            f"{cancel * 1000:.0f}",
            "≤ 1000",
            kept(cancel <= 1),
            f"{percentile(floor.cancels, 0.95) * 1000:.0f}",
            f"{cancel / percentile(floor.cancels, 0.95):.2f}",
        ),
        Figure(
            "start to the first model call, ms",
            f"{median(product.starts) * 1000:.1f}",
            "≤ 1.5 ×",
            kept(start <= 1.5),
            f"{median(floor.starts) * 1000:.1f}",
            f"{start:.2f}",
        ),
    ]


def measured(floor: Samples, product: Samples, bare: History, rounds: int) -> str:
    return f"""
Perdure and the floor run on one Temporal server (the embedded one, with its own settings) and take turns, {rounds} rounds,
each going first in turn. Ratios of time and throughput are the median of the rounds' ratios. The other figures are medians
or percentiles of all samples.

| ratio by round | |
|---|---|
| ms per step | {_each(product.run, floor.run)} |
| throughput | {_each(product.at_once, floor.at_once)} |

- **ms per step is `inconclusive`** where the target is kept but the floor spends more than half of a step waiting for the
  server to hand a workflow task to its worker ({bare.wait_ms:.1f} ms, twice a step). Nobody works in that time, so that what
  Perdure does more disappears in it. What it really costs shows in the CPU of the process and in the throughput.
- **Floor:** `benchmarks/floor.py`, a worker in a process of its own; per step a model stub and a tool stub that pass ids.
- **Perdure:** `perdure up` in a process of its own, SQLite, driven over HTTP, with a viewer attached to every run. The
  scripted provider answers at once; every step calls one Python function tool. The whole run counts, from the POST to the
  viewer's `run.completed`, divided by its steps; for the floor from starting the workflow to its result.
- **History:** the size that the Temporal server reports, of a run whose every tool result has 5,000 characters; per step from
  its exported events. Event ids alone, which have more digits later on, make the floor's steps grow as shown.
- **Token to viewer:** a model server on loopback writes {TOKENS} tokens at 50 a second, each of them the time when it was
  written; {VIEWERS} viewers of one session, {VIEWERS * TOKENS} samples a round. The way through the `openai` package is in it.
- **Cancel:** from the POST to the model server's seeing its connection closed, {CANCELS} a round; the floor's from asking to
  the activity's end (1 s heartbeat time-out; the server pushes cancellations to both).
- **Start:** from the POST of a message to a viewer's `span.model_request_start`, {STARTS} a round; the floor's from starting
  the workflow to its first activity. Both contain one wait of a workflow task, which draws the ratio towards 1.
"""


def _ratio(product: Sequence[float], floor: Sequence[float]) -> float:
    return median(a / b for a, b in zip(product, floor, strict=True))


def _each(product: Sequence[float], floor: Sequence[float]) -> str:
    return ", ".join(f"{a / b:.2f}" for a, b in zip(product, floor, strict=True))
