"""Many viewers of one API process: what an idle stream costs it, and how long one event takes to all of them."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.crowd import crowd
from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept, memory
from benchmarks.service import Perdure, api, temporal

WARM_UP = 20
"""Streams that were open before the first look at the memory, and are closed again."""
HEARTBEATS_SECONDS = 11
"""Longer than between two heartbeats of a stream, whose buffers are part of what it costs."""
MAX_KIB = 60
MAX_SECONDS = 1
UPDATES = 5
"""Events in a round."""


@dataclass(frozen=True)
class Idle:
    """What open streams cost the process on which nothing happens."""

    kib: float
    """Of memory, each."""
    cpu: float
    """Seconds of the processor per second, all together."""


async def measure(size: Size) -> Report:
    many = size.streams
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        address = await stack.enter_async_context(temporal(folder))
        async with api(_made(folder / "one"), address) as service:
            session = await service.session(await service.agent("watched", "demo:echo"))
            together, latest = await watched(service, folder, [session] * many, size)
        async with api(_made(folder / "each"), address) as service:
            agent = await service.agent("watched", "demo:echo")
            sessions = [await service.session(agent) for _ in range(many)]
            apart, _ = await watched(service, folder, sessions, size, updates=False)
    return Report(
        [
            _memory(f"memory of a stream, KiB ({many:,} of 1 session)", together),
            _memory(f"memory of a stream, KiB ({many:,} of as many sessions)", apart),
            Figure(
                f"one event to {many:,} viewers of 1 session, ms",
                f"{median(latest) * 1000:.0f}",
                f"≤ {MAX_SECONDS * 1000}",
                kept(median(latest) <= MAX_SECONDS),
            ),
            Figure("… the slowest", f"{max(latest) * 1000:.0f}"),
            Figure(f"CPU of {many:,} idle streams of 1 session, ms per second", f"{together.cpu * 1000:.0f}"),
            Figure(f"CPU of {many:,} idle streams of as many sessions, ms per second", f"{apart.cpu * 1000:.0f}"),
        ],
        "–",
        _MEASURED.format(rounds=size.rounds, updates=UPDATES, warm_up=WARM_UP, seconds=HEARTBEATS_SECONDS),
    )


_MEASURED = """
`perdure api` alone in its process, on SQLite, and the viewers in another (`benchmarks/crowd.py`: sockets that do next to
nothing with what comes).

- **Memory of a stream:** the growth of the process's resident memory from {warm_up} streams opened and closed to all open and
  {seconds} s, at least one heartbeat, later.
- **One event:** from the POST that renames the session to the last viewer's having its `session.updated`: request,
  transaction and commit are in it. The median of {rounds} rounds of {updates} events.
- **CPU:** of the API process while nothing happens but heartbeats, and its looking for what another process may have written.
"""


async def watched(
    service: Perdure, folder: Path, sessions: Sequence[str], size: Size, *, updates: bool = True
) -> tuple[Idle, list[float]]:
    """What a stream on each of the sessions costs, and seconds from an event to the last of them."""
    paths = [f"/v1/sessions/{session}/events/stream" for session in sessions]
    async with crowd(service, folder) as viewers:
        await viewers.open(paths[:WARM_UP])
    await asyncio.sleep(1)
    before = memory(service.pid)
    async with crowd(service, folder) as viewers:
        await viewers.open(paths)
        used, began = cpu_seconds(service.pid), time.monotonic()
        await asyncio.sleep(min(HEARTBEATS_SECONDS, size.window_seconds))
        cpu = (cpu_seconds(service.pid) - used) / (time.monotonic() - began)
        idle = Idle((memory(service.pid) - before) / 1024 / len(paths), cpu)
        latest: list[float] = []
        for number in range(size.rounds * UPDATES if updates else 0):
            await asyncio.sleep(0.2)
            asked = time.monotonic_ns()
            renaming = asyncio.create_task(service.post(f"/v1/sessions/{sessions[0]}", {"title": f"title {number}"}))
            latest.append((await viewers.seen() - asked) / 1e9)
            await renaming
    return idle, latest


def _memory(name: str, idle: Idle) -> Figure:
    return Figure(name, f"{idle.kib:.1f}", f"≤ {MAX_KIB}", kept(idle.kib <= MAX_KIB))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
