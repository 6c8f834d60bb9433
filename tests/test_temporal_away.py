"""Temporal cannot be reached for a while: what was accepted happens."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from commands.temporal_server import temporal_server
from tests.service import RunView, ServiceThread, free_port

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


def test_a_run_accepted_while_temporal_is_away_starts_when_it_is_back(temporal: Temporal, tmp_path: Path) -> None:
    with ServiceThread(tmp_path / "data", None, temporal=temporal.address) as service, service.workspace() as workspace:
        agent = workspace.agent(model="demo:echo")["id"]
        assert workspace.get("/readyz") == {"ready": True, "database": "ok", "temporal": "ok"}
        temporal.stop()

        run = RunView(workspace, workspace.post("/v1/runs", {"agent": agent, "input": "patience"}, expect=201)["id"])
        assert workspace.get("/readyz", expect=503) == {"ready": False, "database": "ok", "temporal": "unreachable"}
        dropped = RunView(workspace, workspace.post("/v1/runs", {"agent": agent, "input": "never"}, expect=201)["id"])
        dropped.command("cancel")
        assert run.row["status"] == "queued"
        time.sleep(1)
        temporal.start()

        assert run.wait(60)["output"] == "patience"
        assert dropped.wait(60)["status"] == "cancelled"
