"""A worker is killed while a tree of sub-agents is at work: all of it goes on."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.durability.process import AUTH, Fleet, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]


def delegate(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "delegate", "input": {"agent": "lead", "task": json.dumps({"script": steps})}}


def test_a_tree_survives_its_worker(tmp_path: Path) -> None:
    writing = {"text": "on ", "words": 60, "delay_ms": 40, "chunk_chars": 8}
    inner = delegate({"tools": [delegate(writing)]}, {"text": "inner"})
    steps = [{"tools": [delegate(writing), inner]}, {"text": "end"}]
    with Fleet(tmp_path) as fleet:
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        worker = fleet.worker()
        worker.says("worker is ready")
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=60) as http:
            lead = {"name": "lead", "model": "demo:script", "multiagent": {"agents": [{"type": "self"}]}}
            assert http.post("/v1/agents", json=lead).status_code == 201
            body = {"agent": "lead", "input": json.dumps({"script": steps})}
            run = http.post("/v1/runs", json=body).json()
            session = f"/v1/sessions/{run['session_id']}"
            with Watching(fleet, run["id"]) as viewer:
                viewer.until("session.thread_created", 2)
                while sum(thread["parent_thread_id"] is not None for thread in threads(http, session)) < 3:
                    time.sleep(0.05)
                worker.kill()
                fleet.worker().says("worker is ready")
                viewer.until("done", seconds=60)
            assert http.get(f"/v1/runs/{run['id']}").json()["output"] == "end"
            rows = http.get("/v1/runs", params={"session_id": run["session_id"]}).json()["data"]
            assert Counter((row["kind"], row["status"]) for row in rows) == {
                ("task", "completed"): 1,
                ("subagent", "completed"): 3,
            }
            log = http.get(f"{session}/events", params={"limit": 1000}).json()["data"]
            types = Counter(event["type"] for event in log)
            assert types["session.thread_created"] == types["agent.thread_message_sent"] == types["agent.tool_result"] == 3
            assert types["run.completed"] == types["run.started"] == 4
            assert http.get(session).json()["usage"]["output_tokens"] == sum(row["usage"]["output_tokens"] for row in rows)


def threads(http: httpx2.Client, session: str) -> list[dict[str, Any]]:
    return http.get(f"{session}/threads").json()["data"]
