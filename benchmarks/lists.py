"""The lists of a database with very many runs beside those of one with few, over HTTP, from two API processes in turns."""

import tempfile
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept, percentile
from benchmarks.seeds import SAME, SESSION_RUNS, Seeded, many_runs, tables_of
from benchmarks.service import Perdure, api, temporal
from domain.clock import wire
from tests.postgres import PostgresServer, PostgresUnavailable

MAX_RATIO = 2
WARM_UP = 5


async def measure(size: Size) -> Report:
    figures = await _compare("SQLite", size, None)
    try:
        if size.postgres:
            with PostgresServer() as server:
                figures += await _compare("Postgres", size, server)
    except PostgresUnavailable as error:
        print(f"*** not measured on Postgres: {error}")
    measured = _MEASURED.format(
        runs=size.runs, requests=size.requests, rounds=size.rounds, few=SAME, sessions=size.runs // SESSION_RUNS
    )
    return Report(figures, f"{SAME} runs", measured, f"{size.runs:,} runs")


_MEASURED = """
Two `perdure api` processes, each with a database of its own, are asked in turns: {requests} requests to each list in each of
{rounds} rounds. Shown is the 95th percentile in ms, the median of the rounds', as is the ratio; in brackets the mean CPU
time of the API process, which other work on the machine disturbs less. Both databases begin with the same {few} runs, the
oldest; the large one has {runs} runs in {sessions} sessions. Whatever filter is set, both answer with as many rows, so that
the difference is the cost of what is not returned: filters look for what only the oldest runs have.
"""


async def _compare(kind: str, size: Size, server: PostgresServer | None) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        address = await stack.enter_async_context(temporal(folder))
        sides: list[tuple[Perdure, Seeded]] = []
        for runs in (SAME, size.runs):
            print(f"{kind}: a database with {runs:,} runs", flush=True)
            (own := folder / str(len(sides))).mkdir()
            url = None if server is None else server.create_database()
            service = await stack.enter_async_context(api(own, address, url))
            async with tables_of(service) as database:
                seeded = await many_runs(database, runs)
            sides.append((service, seeded))
        few, many = sides
        return await compared(kind, few, many, size)


async def compared(kind: str, few: tuple[Perdure, Seeded], many: tuple[Perdure, Seeded], size: Size) -> list[Figure]:
    of_few, of_many = await _paths(*few), await _paths(*many)
    return [await figure(f"{name} ({kind})", (few[0], path), (many[0], of_many[name]), size) for name, path in of_few.items()]


async def figure(name: str, few: tuple[Perdure, str], many: tuple[Perdure, str], size: Size) -> Figure:
    rounds: list[tuple[float, float]] = []
    rows = [await _rows(*side) for side in (few, many)]
    if rows[0] != rows[1] or not rows[0]:
        raise AssertionError(f"{name}: {rows[0]} and {rows[1]} rows are no comparison")
    cpu = [0.0, 0.0]
    for number in range(size.rounds):
        samples: tuple[list[float], list[float]] = ([], [])
        for request in range(WARM_UP + size.requests):
            for side in (0, 1) if (number + request) % 2 == 0 else (1, 0):
                service, path = (few, many)[side]
                used, began = cpu_seconds(service.pid), time.perf_counter()
                response = await service.http.get(path)
                took = time.perf_counter() - began
                response.raise_for_status()
                if request >= WARM_UP:
                    samples[side].append(took)
                    cpu[side] += cpu_seconds(service.pid) - used
        rounds.append((percentile(samples[0], 0.95), percentile(samples[1], 0.95)))
    ratio, count = median(b / a for a, b in rounds), size.rounds * size.requests
    return Figure(
        name,
        f"{median(b for _, b in rounds) * 1000:.1f} ({cpu[1] / count * 1000:.1f})",
        f"≤ {MAX_RATIO} ×",
        kept(ratio <= MAX_RATIO),
        f"{median(a for a, _ in rounds) * 1000:.1f} ({cpu[0] / count * 1000:.1f})",
        f"{ratio:.2f}",
    )


async def _rows(service: Perdure, path: str) -> int:
    return len((await service.get(path))["data"])


async def _paths(service: Perdure, seeded: Seeded) -> dict[str, str]:
    """What is asked, by name."""
    first, soon = wire(seeded.first - timedelta(seconds=1)), wire(seeded.first + timedelta(seconds=SAME // 2))
    old = f"created_at[gte]={first}&created_at[lt]={soon}"
    session = f"/v1/sessions/{seeded.session_id}/events"

    async def from_the_middle(path: str) -> str:
        page = (await service.get(f"{path}?created_at[lt]={wire(seeded.middle)}&limit=2"))["next_page"]
        return f"{path}?page={page}"

    return {
        "runs": "/v1/runs",
        "runs, the oldest first": "/v1/runs?order=asc",
        "runs, a page in the middle": await from_the_middle("/v1/runs"),
        "runs of a status": "/v1/runs?status=waiting",
        "runs of two statuses": "/v1/runs?status=failed&status=cancelled",
        "runs of an agent": f"/v1/runs?agent_id={seeded.agent_id}",
        "runs of an agent and a status": f"/v1/runs?agent_id={seeded.agent_id}&status=failed",
        "runs of a session": f"/v1/runs?session_id={seeded.session_id}",
        "runs of a time": f"/v1/runs?{old}",
        "sessions": "/v1/sessions",
        "sessions, a page in the middle": f"{await from_the_middle('/v1/sessions')}&limit=10",
        "sessions of an agent": f"/v1/sessions?agent_id={seeded.agent_id}",
        "sessions of a status": "/v1/sessions?statuses=running",
        "sessions of a time": f"/v1/sessions?{old}",
        "agents": "/v1/agents",
        "agents of a name": f"/v1/agents?name={seeded.agent_name}",
        "events of a session": session,
        "events of a session, the newest first": f"{session}?order=desc",
        "events of a session and a type": f"{session}?types=agent.message&limit=10",
        "events of a session and a time": f"{session}?created_at[gte]={first}",
        "events of a run": f"/v1/runs/{seeded.run_id}/events?limit=10",
    }
