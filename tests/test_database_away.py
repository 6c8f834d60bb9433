"""The database cannot be reached for a while, under load: nothing accepted is lost, nothing is done twice, nobody hangs."""

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.postgres import PostgresServer, PostgresUnavailable, find_binaries
from tests.service import Frame, RunView, ServiceThread, Workspace, is_delta

pytestmark = pytest.mark.single_database  # on Postgres, in whichever round

WRITING_SECONDS = 2
STEP = {"text": "word " * 80, "delay_ms": 25, "tools": [{"name": "glob", "input": {"pattern": "*"}}]}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    try:
        find_binaries()
    except PostgresUnavailable as error:
        pytest.skip(str(error))
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    with ServiceThread(tmp_path_factory.mktemp("away"), postgres.create_database()) as running:
        yield running


def timed(workspace: Workspace, method: str, path: str, **more: Any) -> tuple[httpx2.Response, float]:
    began = time.monotonic()
    response = workspace.http.request(method, path, **more)
    return response, time.monotonic() - began


def refused(workspace: Workspace, method: str, path: str, **more: Any) -> None:
    response, seconds = timed(workspace, method, path, **more)
    assert response.status_code == 503, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) > 0
    assert (response.json()["code"], response.json()["retryable"]) == ("unavailable", True)
    assert seconds < 10


def whole(run: RunView, frames: list[Frame]) -> None:
    """The run is done, each of its model calls was made once, and its viewer was told everything once and in order."""
    row = run.wait(40)
    assert (row["status"], row["output"]) == ("completed", "end")
    events = run.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    types = [event["type"] for event in events]
    assert (types.count("span.model_request_start"), types.count("agent.tool_result")) == (2, 1)
    assert not any(event.get("is_error") for event in events)
    told = [frame.data["seq"] for frame in frames if "seq" in frame.data]
    assert told == [event["seq"] for event in events]
    assert frames[-1].event == "done"


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_the_database_goes_away_under_load_and_comes_back(service: ServiceThread, postgres: PostgresServer, how: str) -> None:
    with service.workspace() as workspace, ThreadPoolExecutor(12) as viewers:
        agent = workspace.agent(tools=["glob"])["id"]
        runs = [workspace.start(STEP, {"text": "end"}, agent=agent) for _ in range(4)]
        watching: list[Future[list[Frame]]] = [viewers.submit(run.stream) for run in runs]
        runs[-1].stream(until=is_delta)
        body: Mapping[str, Any] = {"agent": agent, "input": json.dumps({"script": [{"text": "end"}]})}
        key = {"Idempotency-Key": uuid4().hex}

        away = time.monotonic()
        postgres.halt() if how == "stopped" else postgres.freeze()
        try:
            one = f"/v1/runs/{runs[0].id}"
            asked = [
                viewers.submit(refused, workspace, "POST", "/v1/runs", json=body, headers=key),
                *(viewers.submit(refused, workspace, "GET", path) for path in (one, f"{one}/events/stream", "/v1/sessions")),
                viewers.submit(refused, workspace, "POST", f"{one}/cancel"),
            ]
            ready, seconds = timed(workspace, "GET", "/readyz")
            parts = {"database": "unreachable", "migrations": "unknown", "temporal": "ok", "live_bus": "ok"}
            assert (ready.status_code, ready.json()) == (503, {"ready": False, **parts})
            assert seconds < 3
            assert timed(workspace, "GET", "/livez")[0].status_code == 200
            for answer in asked:
                answer.result()
            # Long enough that every model call has ended meanwhile, with an answer that nobody can write down yet.
            time.sleep(max(0.0, away + WRITING_SECONDS + 1.5 - time.monotonic()))
        finally:
            postgres.resume() if how == "stopped" else postgres.thaw()

        accepted = [workspace.post("/v1/runs", body, expect=201, headers=key) for _ in range(2)]
        assert accepted[0]["id"] == accepted[1]["id"]
        assert len(workspace.get("/v1/runs", limit=100)["data"]) == len(runs) + 1
        assert workspace.get("/readyz")["ready"]
        for run, viewer in zip(runs, watching, strict=True):
            whole(run, viewer.result(40))


def test_the_database_is_away_when_a_run_is_accepted_and_started(service: ServiceThread, postgres: PostgresServer) -> None:
    """The first model call begins while the database is away: it waits, and is not an attempt that failed."""
    with service.workspace() as workspace:
        agent = workspace.agent(tools=["glob"])["id"]
        runs = [workspace.start(STEP, {"text": "end"}, agent=agent) for _ in range(4)]
        postgres.halt()
        time.sleep(2)
        postgres.resume()
        for run in runs:
            row = run.wait(40)
            assert row["status"] == "completed"
            assert not any(event.get("is_error") for event in run.events())
