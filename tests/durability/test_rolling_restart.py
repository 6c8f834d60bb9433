"""A deploy while runs flow: each process is told to stop and gets a successor; nothing fails, nobody misses anything."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.durability.process import AUTH, Fleet, Story, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(180)]

CLIENTS = 4
STEPS = (
    {"text": "one ", "words": 60, "delay_ms": 30, "tools": [{"name": "ring", "input": {"name": "bell", "seconds": 0.2}}]},
    {"tools": [{"name": "listen", "input": {"name": "ear", "seconds": 0.5}}]},
    {"text": "the end"},
)


class Client(threading.Thread):
    """Starts a run, follows it to its end, and so on. A connection that breaks is made again, at the next API."""

    def __init__(self, fleet: Fleet, agent: str, stop: threading.Event) -> None:
        super().__init__()
        self._fleet = fleet
        self._body = {"agent": agent, "input": json.dumps({"script": STEPS})}
        self._stopped = stop
        self._urls = cycle(fleet.urls)
        self.http = httpx2.Client(base_url=next(self._urls), headers=AUTH, timeout=30)
        self.stories: dict[str, Story] = {}
        self.connections: Counter[str] = Counter()
        self.refused: list[str] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            answer = self.post("/v1/runs", self._body)
            if answer.status_code != 201:
                self.refused.append(answer.text)
                break
            run_id = answer.json()["id"]
            with Watching(self._fleet, run_id) as viewer:
                self.stories[run_id] = viewer.story
                viewer.until("done")
            self.connections[run_id] = viewer.connections
        self.http.close()

    def post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        key = {"Idempotency-Key": uuid4().hex}
        while True:
            try:
                return self.http.post(path, json=body, headers=key)
            except httpx2.TransportError:
                self.http.close()
                self.http = httpx2.Client(base_url=next(self._urls), headers=AUTH, timeout=30)


def test_nothing_fails(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    (tmp_path / "perdure.toml").write_text('[tools]\nmodules = ["tests.durability.bells"]\n')
    with Fleet(tmp_path, PERDURE_DRAIN_SECONDS="0.5", PERDURE_LEAVE_SECONDS="0.5") as fleet:
        fleet.temporal()
        apis = [fleet.api()]
        apis[0].ready()  # which makes the database
        apis.append(fleet.api())
        workers = [fleet.worker() for _ in range(2)]
        for api, worker in zip(apis, workers, strict=True):
            api.ready()
            worker.says("worker is ready")
        http = httpx2.Client(base_url=apis[0].url, headers=AUTH, timeout=30)
        tools = [{"type": "function", "name": "ring"}, {"type": "function", "name": "listen"}]
        agent = http.post("/v1/agents", json={"name": "bells", "model": "demo:script", "tools": tools}).json()["id"]
        http.close()

        stop = threading.Event()
        clients = [Client(fleet, agent, stop) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(1)
        for number in range(2):
            wait_for_runs(clients, number)
            for leaving in (workers[number], apis[number]):
                code, seconds = leaving.stop()
                assert (code, seconds < 6) == (0, True), leaving.output
                assert "Traceback" not in leaving.output
                assert "ASGI" not in leaving.output
            successor = fleet.api(fleet.ports[number])
            fleet.worker().says("worker is ready")
            successor.ready()
        wait_for_runs(clients, 2)
        stop.set()
        for client in clients:
            client.join(60)

        assert [client.refused for client in clients] == [[]] * CLIENTS
        stories = {run_id: story for client in clients for run_id, story in client.stories.items()}
        assert [story.faults for story in stories.values() if story.faults] == []
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=30) as http:
            rows = {row["id"]: row for row in http.get("/v1/runs?limit=100").json()["data"]}
        assert rows.keys() == stories.keys(), "a request that was sent again has started a run of its own"
        assert Counter(row["status"] for row in rows.values()) == {"completed": len(stories)}
        notes = [Counter(file.read_text().splitlines()) for file in fleet.data.glob("files/*/*/notes")]
        assert [noted["bell starts"] for noted in notes] == [1] * len(stories)
        # And it was a deploy under load: viewers came back.
        assert max(count for client in clients for count in client.connections.values()) > 1
        assert len(stories) >= CLIENTS * 3
        record_property("looked_at", len(stories))


def wait_for_runs(clients: Sequence[Client], count: int) -> None:
    """Until each has followed that many to their ends, and is in the middle of another."""
    deadline = time.monotonic() + 40
    while any(client.is_alive() and len(client.connections) < count for client in clients):
        assert time.monotonic() < deadline
        time.sleep(0.05)
