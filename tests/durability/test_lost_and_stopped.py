"""A worker dies with a model call, and before anybody notices the run is paused or cancelled."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.durability.process import AUTH, Fleet, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]

ENDLESS = {"text": "on and on ", "words": 5000, "delay_ms": 50}


def test_a_lost_call_can_be_paused_and_cancelled(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=30) as http:
            worker = fleet.worker()
            worker.says("worker is ready")
            paused, cancelled = start(http, ENDLESS), start(http, ENDLESS)
            with Watching(fleet, paused) as viewer:
                viewer.until("span.model_request_start")
                until(http, cancelled, lambda run: run["status"] == "running")
                fleet.worker().says("worker is ready")  # workflows go over to it at once, calls when they are missed
                worker.kill()
                assert http.post(f"/v1/runs/{paused}/pause", json={"mode": "now"}).status_code == 202
                assert http.post(f"/v1/runs/{cancelled}/cancel", json={}).status_code == 202
                until(http, paused, lambda run: run["status"] == "paused")
                assert [error(event) for event in events(http, paused, "span.model_request_end")] == ["worker_lost"]
                assert http.post(f"/v1/runs/{paused}/resume").status_code == 202
                viewer.until("span.model_request_start", 2)
                assert http.post(f"/v1/runs/{paused}/cancel", json={}).status_code == 202
                viewer.until("done")
            assert viewer.story.faults == []
            until(http, cancelled, lambda run: run["status"] == "cancelled")
            assert [error(event) for event in events(http, cancelled, "span.model_request_end")] == ["worker_lost"]


def error(end: dict[str, Any]) -> str | None:
    return end["error"]["code"] if end["error"] else None


def start(http: httpx2.Client, *steps: dict[str, Any]) -> str:
    body = {"agent": {"name": "a", "model": "demo:script"}, "input": json.dumps({"script": steps})}
    run = http.post("/v1/runs", json=body)
    assert run.status_code == 201, run.text
    return str(run.json()["id"])


def until(http: httpx2.Client, run_id: str, condition: Callable[[dict[str, Any]], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition(run := http.get(f"/v1/runs/{run_id}").json()):
        assert time.monotonic() < deadline, run
        time.sleep(0.05)


def events(http: httpx2.Client, run_id: str, type: str) -> list[dict[str, Any]]:
    log = http.get(f"/v1/runs/{run_id}/events", params={"limit": 1000}).json()["data"]
    return [event for event in log if event["type"] == type]
