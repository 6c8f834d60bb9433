"""The worker dies between a message to a busy session and what becomes of it."""

import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.durability.process import AUTH, Fleet, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]

SLOW = {"text": "on ", "words": 100, "delay_ms": 40, "chunk_chars": 8}


def test_a_steered_and_an_interrupting_message_survive_the_worker(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        worker = fleet.worker()
        worker.says("worker is ready")
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=60) as http:
            http.post("/v1/agents", json={"name": "busy", "model": "demo:script"}).raise_for_status()
            session = http.post("/v1/sessions", json={"agent": "busy"}).json()["id"]

            def say(*steps: dict[str, Any], on_busy: str = "queue") -> dict[str, Any]:
                body = {"content": json.dumps({"script": steps}), "on_busy": on_busy}
                sent = http.post(f"/v1/sessions/{session}/messages", json=body)
                assert sent.status_code == 201, sent.text
                return sent.json()

            def of(run_id: str) -> list[dict[str, Any]]:
                return http.get(f"/v1/runs/{run_id}/events", params={"limit": 1000}).json()["data"]

            first = say(SLOW, {"text": "Unsteered."})["run"]["id"]
            with Watching(fleet, first) as viewer:
                viewer.until("span.model_request_start")
                steered = say(SLOW, {"text": "Never."}, on_busy="steer")
                worker.kill()
                assert [event["status"] for event in of(first) if event["type"] == "session.steer"] == ["accepted"]
                worker = fleet.worker()
                viewer.until("session.steer", 2)
                time.sleep(0.5)
                worker.kill()
                new = say({"text": "Instead."}, on_busy="interrupt")["run"]["id"]
                fleet.worker().says("worker is ready")
                viewer.until("done", seconds=60)

            with Watching(fleet, new) as viewer:
                viewer.until("done", seconds=30)
            assert http.get(f"/v1/runs/{first}").json()["status"] == "cancelled"
            assert http.get(f"/v1/runs/{new}").json()["output"] == "Instead."
            steers = [(e["status"], e["event_id"]) for e in of(first) if e["type"] == "session.steer"]
            assert steers == [("accepted", steered["event"]["id"]), ("applied", steered["event"]["id"])]
            assert len(http.get("/v1/runs", params={"session_id": session}).json()["data"]) == 2
