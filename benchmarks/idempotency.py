"""One POST, sent many times at once under one Idempotency-Key: how many runs there are afterwards."""

import asyncio
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
from temporalio.client import Client

from benchmarks.measure import Figure, Report, Size, kept
from benchmarks.seeds import MODEL
from benchmarks.service import Perdure, api, perdure, temporal
from tests.postgres import PostgresServer, PostgresUnavailable
from workflows.attributes import AGENT

NAME = "repeated"
LISTED_SECONDS = 1
"""Temporal lists a workflow a moment after it has started it."""


async def measure(size: Size) -> Report:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        async with perdure(Path(name)) as service:
            figures += await repeated("one process, SQLite", [service], size.repeats)
    try:
        if size.postgres:
            with PostgresServer() as server:
                figures += await _on_two(server, size.repeats)
    except PostgresUnavailable as error:
        print(f"*** not measured on Postgres: {error}")
    return Report(figures, "–", _MEASURED)


_MEASURED = """
`POST /v1/runs`, every time with the same body and `Idempotency-Key`, all sent at once on connections of their own. Afterwards
the runs of the agent are counted over HTTP and the workflows in Temporal. Who is told 409 `idempotency_in_flight` comes while
the first is still at it; one more POST to each process gets the first one's run.
"""


async def _on_two(server: PostgresServer, repeats: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        address = await stack.enter_async_context(temporal(folder))
        url = server.create_database()
        first = await stack.enter_async_context(api(folder, address, url))
        second = await stack.enter_async_context(api(folder, address, url, key=first.key))
        return await repeated("two API processes, Postgres", [first, second], repeats)


async def repeated(where: str, services: list[Perdure], repeats: int) -> list[Figure]:
    agent = await services[0].agent(NAME, MODEL)
    body, headers = {"agent": agent, "input": "hello"}, {"Idempotency-Key": "the same"}

    async def post(number: int) -> httpx2.Response:
        return await services[number % len(services)].http.post("/v1/runs", json=body, headers=headers)

    answers = await asyncio.gather(*map(post, range(repeats)))
    codes = Counter(answer.status_code for answer in answers)
    if set(codes) - {201, 409}:
        raise AssertionError(f"answers of another kind: {codes}")
    again = [await post(number) for number in range(len(services))]
    told = {answer.json()["id"] for answer in [*answers, *again] if answer.status_code == 201}
    listed = {run["id"] for run in (await services[0].get(f"/v1/runs?agent_id={agent}&limit=100"))["data"]}
    workflows = await _workflows(services[0], NAME)
    if not workflows:
        raise AssertionError("Temporal lists no workflow")
    runs = len(told | listed | workflows)
    seen = ", ".join(f"{count} × {code}" for code, count in sorted(codes.items()))
    return [Figure(f"runs of {repeats} equal POSTs at once ({where}: {seen})", str(runs), "1", kept(runs == 1))]


async def _workflows(service: Perdure, agent: str) -> set[str]:
    """Their ids, which are those of their runs."""
    temporal = await Client.connect(service.temporal_address)
    await asyncio.sleep(LISTED_SECONDS)
    return {workflow.id async for workflow in temporal.list_workflows(f"{AGENT.name} = '{agent}'")}
