"""How long an installed service takes from its command to being ready."""

import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept
from benchmarks.service import ROOT, environment_in, started

MAX_SECONDS = 15
# `-o`: as it is, whatever its lock file says: what is measured is an installed service.
COMMAND = ("make", "--no-print-directory", "-C", str(ROOT), "-o", ".venv/installed", "run")


async def measure(size: Size) -> Report:
    fresh: list[float] = []
    again: list[float] = []
    cpu: list[float] = []
    for _ in range(size.rounds):
        with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
            environment = environment_in(Path(name))
            for samples in (fresh, again):
                began = time.monotonic()
                async with started(COMMAND, environment, Path(name)) as service:
                    samples.append(time.monotonic() - began)
                    (process,) = psutil.Process(service.pid).children()
                    cpu.append(cpu_seconds(process.pid))
    return Report(
        [
            _figure("`make run` to ready, s (fresh data folder)", fresh),
            _figure("… (the same folder again)", again),
            Figure("… CPU of the process, s", f"{median(cpu):.1f}"),
        ],
        "–",
        f"""
From starting `make run`, with everything installed, to the first 200 of `/readyz`; asked every 0.1 s. {size.rounds} rounds,
each on a fresh data folder and then once more on the same; the slowest counts, the median is {median(fresh):.1f} s.
""",
    )


def _figure(name: str, seconds: list[float]) -> Figure:
    return Figure(name, f"{max(seconds):.1f}", f"≤ {MAX_SECONDS}", kept(max(seconds) <= MAX_SECONDS))
