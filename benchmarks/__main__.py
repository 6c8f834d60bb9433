"""`make bench`: the figures of the floor, as a table and in benchmarks/floor.json."""

import asyncio
import json
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.floor import RUNS_AT_ONCE, STEPS, Floor, floor
from benchmarks.measure import Figure, free_port, machine, table
from commands.temporal_server import temporal_server

ROUNDS = 3
REPEATS = 5
"""Of the short measurements, within a round: their median counts."""


async def measure(bare: Floor) -> list[Figure]:
    """Every figure of the floor, ROUNDS times, interleaved; a first round is thrown away."""
    measurements: dict[tuple[str, str], tuple[Callable[[], Awaitable[float]], int]] = {
        ("a step", "ms"): (bare.step_ms, 1),
        (f"steps, {RUNS_AT_ONCE} runs at once", "1/s"): (bare.steps_per_second, 1),
        (f"history of {STEPS} steps", "bytes"): (bare.history_bytes, 1),
        ("start to first activity", "ms"): (bare.start_ms, REPEATS),
        ("cancel to activity ended", "ms"): (bare.cancel_ms, REPEATS),
    }
    values: dict[tuple[str, str], list[float]] = {key: [] for key in measurements}
    for _ in range(1 + ROUNDS):
        for key, (once, repeats) in measurements.items():
            values[key].append(statistics.median([await once() for _ in range(repeats)]))
    return [Figure(name, unit, tuple(rounds[1:])) for (name, unit), rounds in values.items()]


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as data:
        async with temporal_server(Path(data), free_port(), None) as address, floor(address) as bare:
            figures = await measure(bare)
    Console(width=140).print(table(f"Floor, {machine()}", figures))
    report = {"at": datetime.now(UTC).isoformat(), "machine": machine(), "figures": [asdict(f) for f in figures]}
    Path(__file__).with_name("floor.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
