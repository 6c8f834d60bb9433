"""A worker is killed while a batch is at work: every item is one run, and the stream one story."""

import json
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.durability.process import AUTH, READY, Fleet
from tests.service import parse

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(180)]

ITEMS = 60


def test_every_item_is_one_run_though_the_worker_is_killed(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        worker = fleet.worker()
        worker.says(READY)
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=60) as http:
            agent = http.post("/v1/agents", json={"name": "a", "model": "demo:script"}).json()["id"]
            inputs = [json.dumps({"script": [{"text": f"{n} " * 10, "delay_ms": 50}]}) for n in range(ITEMS)]
            made = http.post("/v1/batches", json={"agent": agent, "inputs": inputs, "max_concurrent": 6}).json()
            path = f"/v1/batches/{made['id']}"
            for at_least in (5, 20):
                while http.get(path).json()["counts"]["completed"] < at_least:
                    time.sleep(0.05)
                worker.kill()
                worker = fleet.worker()
                worker.says(READY)
            with http.stream("GET", f"{path}/events/stream", params={"after": 0}) as response:
                frames = list(parse(response.iter_lines()))
            assert [frame.event for frame in frames[-2:]] == ["batch.completed", "done"]
            assert [frame.data["seq"] for frame in frames[:-1]] == list(range(1, len(frames)))
            told = [item["index"] for frame in frames if frame.event == "batch.progress" for item in frame.data["finished"]]
            assert sorted(told) == list(range(ITEMS)), "each once"
            assert http.get(path).json()["counts"]["completed"] == ITEMS
            lines = [json.loads(line) for line in http.get(f"{path}/results").text.splitlines()]
            assert [line["output"].split()[0] for line in lines] == [str(n) for n in range(ITEMS)]
            runs = http.get("/v1/runs", params={"batch_id": made["id"], "limit": 100}).json()["data"]
            assert Counter(run["id"] for run in runs) == Counter(line["run_id"] for line in lines)
            sessions = http.get("/v1/sessions", params={"limit": 100}).json()["data"]
            assert len(sessions) == ITEMS
