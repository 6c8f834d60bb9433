"""Temporal cannot be reached for a while: what was accepted happens."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from commands.temporal_server import temporal_server
from tests.ports import free_port
from tests.service import RunView, ServiceThread, is_delta

pytestmark = pytest.mark.single_database


class Temporal:
    """A Temporal server that can go away and come back."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)))
        self._thread.start()
        started.result(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, started: "Future[None]") -> None:
        async with temporal_server(self._data, self._port, None):
            started.set_result(None)
            await self._stop.wait()


@pytest.fixture
def temporal(tmp_path: Path) -> Iterator[Temporal]:
    server = Temporal(tmp_path)
    server.start()
    yield server
    server.stop()


def test_temporal_goes_away_under_load_and_comes_back(temporal: Temporal, tmp_path: Path) -> None:
    """What was in flight is done once, what is accepted meanwhile is done after, and nobody hangs."""
    with (
        ServiceThread(tmp_path / "data", None, temporal=temporal.address) as service,
        service.workspace() as workspace,
        ThreadPoolExecutor(16) as others,
    ):
        agent = workspace.agent(tools=["ask_user", "glob"])["id"]
        step = {"text": "word " * 60, "delay_ms": 20, "tools": [{"name": "glob", "input": {"pattern": "*"}}]}
        asks = {"tools": [{"name": "ask_user", "input": {"question": "?"}}]}
        waiting, stopped, killed = (workspace.start(asks, {"text": "end"}, agent=agent) for _ in range(3))
        for run in (waiting, stopped, killed):
            run.until(lambda row: row["status"] == "waiting")
        runs = [workspace.start(step, {"text": "end"}, agent=agent) for _ in range(4)]
        told = [others.submit(run.stream) for run in runs]
        runs[-1].stream(until=is_delta)
        parts = {"database": "ok", "migrations": "ok", "live_bus": "ok"}
        assert workspace.get("/readyz") == {"ready": True, "temporal": "ok", **parts}
        temporal.stop()

        began = time.monotonic()
        script = json.dumps({"script": [{"text": "end"}]})
        body = {"agent": agent, "input": script}
        accepted = [others.submit(workspace.post, "/v1/runs", body, expect=201) for _ in range(4)]
        commands = [
            others.submit(waiting.command, "input", {"content": "yes"}),
            others.submit(stopped.command, "cancel"),
            others.submit(killed.command, "terminate"),
        ]
        later = [RunView(workspace, answer.result()["id"]) for answer in accepted]
        for command in commands:
            command.result()
        dropped = RunView(workspace, workspace.post("/v1/runs", body, expect=201)["id"])
        dropped.command("cancel")
        assert time.monotonic() - began < 15
        assert workspace.get("/readyz", expect=503) == {"ready": False, "temporal": "unreachable", **parts}
        assert {run.row["status"] for run in (*later, dropped)} == {"queued"}
        temporal.start()

        assert {run.wait(60)["status"] for run in (*runs, *later, waiting)} == {"completed"}
        assert (stopped.wait(60)["status"], killed.wait(60)["status"]) == ("cancelled", "terminated")
        assert dropped.wait(60)["status"] == "cancelled"
        assert "run.started" not in dropped.types()
        for run, frames in zip(runs, told, strict=True):
            assert [frame.data["seq"] for frame in frames.result() if "seq" in frame.data] == [e["seq"] for e in run.events()]
            assert run.types().count("span.model_request_start") == 2
