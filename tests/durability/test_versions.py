"""Worker Versioning on the real server: a run that began on one build goes on on the next."""

import subprocess
from pathlib import Path

import httpx2
import pytest
from temporalio.api.enums.v1 import EventType

from commands.temporal_server import binary
from tests.durability.process import AUTH, Fleet, Process
from tests.durability.test_deploys import END, events, history, over, start, until

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]


def test_a_run_goes_on_when_another_build_becomes_current(tmp_path: Path) -> None:
    with Fleet(tmp_path, TEMPORAL_DEPLOYMENT_NAME="perdure") as fleet:
        fleet.temporal()
        api = fleet.api()
        api.ready()
        nameless = fleet.worker()
        first = build(fleet, "v1")
        with httpx2.Client(base_url=api.url, headers=AUTH, timeout=30) as http:
            make_current(fleet, "v1")
            asked = start(http, {"tools": [{"name": "ask_user", "input": {"question": "?"}}]}, END, tools=["ask_user"])
            called = start(http, {"text": "long", "words": 100, "stall_attempts": 1}, END)
            until(lambda: http.get(f"/v1/runs/{asked}").json()["status"] == "waiting")
            until(lambda: bool(events(http, called, "span.model_request_start")))

            build(fleet, "v2")
            make_current(fleet, "v2")
            until(lambda: builds(fleet, over(http, start(http, END))["id"]) == ["v2"])  # it takes the server a moment
            assert http.post(f"/v1/runs/{asked}/input", json={"content": "go on"}).status_code == 202
            assert over(http, asked)["output"] == "the end"
            assert first.stop()[0] == 0
            assert over(http, called)["output"].startswith("long")

        assert nameless.process.wait(10) == 1
        assert "set both or none" in nameless.output
        assert builds(fleet, asked) == ["v1", "v2"]
        assert builds(fleet, called) == ["v1", "v2"]


def build(fleet: Fleet, id: str) -> Process:
    worker = fleet.worker(TEMPORAL_WORKER_BUILD_ID=id, PERDURE_DRAIN_SECONDS="0.5")
    worker.says("worker is ready")
    return worker


def make_current(fleet: Fleet, id: str) -> None:
    """As docs/operations.md says."""
    arguments = ["worker", "deployment", "set-current-version", "--deployment-name", "perdure", "--build-id", id, "--yes"]

    def done() -> bool:
        # A build is known as soon as the server has seen its worker poll.
        temporal = [binary(), *arguments, "--address", fleet.temporal_address]
        return subprocess.run(temporal, capture_output=True, check=False, env={"HOME": str(fleet.folder)}).returncode == 0

    until(done, 20)


def builds(fleet: Fleet, run_id: str) -> list[str]:
    """The builds that carried out the run, in order."""
    ids = [
        event.workflow_task_completed_event_attributes.deployment_version.build_id
        for event in history(fleet, run_id)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ]
    return [id for index, id in enumerate(ids) if index == 0 or ids[index - 1] != id]
