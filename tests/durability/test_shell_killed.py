"""A worker is killed while a command runs in the sandbox: it dies with it, is not run again, and the model is told so."""

import json
import secrets
from pathlib import Path

import httpx2
import pytest

from activities.tools import UNKNOWN_OUTCOME
from tests.durability.process import AUTH, Fleet, Watching
from tests.tools.shells import MARKS, alive, until

pytestmark = [*MARKS, pytest.mark.timeout(120)]

SHELL = {"type": "function", "name": "bash", "permission_policy": {"type": "always_allow"}}


def test_a_command_is_never_run_twice(tmp_path: Path) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"
    steps = [
        {"tools": [{"name": "bash", "input": {"command": f"echo ran >> log; sleep {marker}"}}]},
        {"tools": [{"name": "bash", "input": {"command": "cat log"}}]},
        {"text": "end"},
    ]
    with Fleet(tmp_path) as fleet:
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        worker = fleet.worker()
        worker.says("worker is ready")
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=60) as http:
            agent = {"name": "a", "model": "demo:script", "tools": [SHELL]}
            run = http.post("/v1/runs", json={"agent": agent, "input": json.dumps({"script": steps})}).json()
            with Watching(fleet, run["id"]) as viewer:
                until(lambda: [process for process in alive(marker) if process.name() == "sleep"], 40)
                worker.kill()
                until(lambda: not alive(marker))
                fleet.worker().says("worker is ready")
                viewer.until("done", seconds=60)
            log = http.get(f"/v1/runs/{run['id']}/events", params={"limit": 1000}).json()["data"]
    results = [(e["content"][0]["text"], e["is_error"]) for e in log if e["type"] == "agent.tool_result"]
    assert results == [(UNKNOWN_OUTCOME, True), ("ran\n", False)]
