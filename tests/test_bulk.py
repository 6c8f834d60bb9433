"""Bulk operations: one command for all runs that match, over HTTP and with a real Temporal."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from api.services.answers import AnswerService
from tests.service import ServiceThread, Workspace
from tests.sweeping import sweep
from tests.test_batches import FAILS, SLOW, batch, over, says, temporal, until
from workflows.client import RunClient


def bulk(workspace: Workspace, action: str, filter: dict[str, Any], **members: Any) -> dict[str, Any]:
    return workspace.post("/v1/bulk_operations", {"action": action, "filter": filter, **members}, expect=202)


def dry(workspace: Workspace, action: str, **filter: Any) -> dict[str, int]:
    body = {"action": action, "filter": filter, "dry_run": True}
    answer = workspace.post("/v1/bulk_operations", body, expect=200)
    assert (answer["id"], answer["status"], answer["matched"]) == (None, None, sum(answer["matched_by_status"].values()))
    return answer["matched_by_status"]


def done(workspace: Workspace, operation: dict[str, Any], seconds: float = 30) -> dict[str, Any]:
    path = f"/v1/bulk_operations/{operation['id']}"
    return until(workspace, path, lambda row: row["finished_at"] is not None, seconds)


def test_a_dry_run_counts_and_changes_nothing(workspace: Workspace) -> None:
    agent = workspace.agent()["id"]
    slow = [workspace.start(text=SLOW, agent=agent, metadata={"kind": "slow", "who'": "a.b"}) for _ in range(3)]
    failed = [workspace.start(text=FAILS, agent=agent) for _ in range(2)]
    fine = workspace.start(text=says("hi"), agent=agent)
    other = workspace.start(text=FAILS)
    for run in (*failed, fine, other):
        run.wait()
    for run in slow:
        run.until(lambda row: row["status"] == "running")
    assert dry(workspace, "cancel", agent_id=agent) == {"running": 3}
    assert dry(workspace, "terminate", agent_id=agent, status=["running", "queued"]) == {"running": 3}
    assert dry(workspace, "cancel", agent_id=agent, status=["completed"]) == {}
    assert dry(workspace, "cancel", metadata={"kind": "slow"}) == {"running": 3}
    assert dry(workspace, "cancel", metadata={"kind": "slow", "who'": "a.b"}) == {"running": 3}
    assert dry(workspace, "cancel", metadata={"kind": "fast"}) == {}
    assert dry(workspace, "retry", created_after="2020-01-01T00:00:00Z") == {"failed": 3}
    assert dry(workspace, "retry", agent_id=agent) == {"failed": 2}
    assert dry(workspace, "retry", session_id=failed[0].row["session_id"]) == {"failed": 1}
    assert dry(workspace, "retry", created_before=failed[1].row["created_at"], agent_id=agent) == {"failed": 1}
    workspace.post(f"/v1/sessions/{failed[0].row['session_id']}/messages", {"content": says("on")}, expect=201)
    assert dry(workspace, "retry", agent_id=agent) == {"failed": 1}, "one session has gone on"
    assert workspace.get("/v1/bulk_operations")["data"] == []
    assert all(run.row["cancel_requested_at"] is None for run in slow)
    operation = done(workspace, bulk(workspace, "cancel", {"metadata": {"kind": "slow"}}, reason="enough"))
    assert (operation["matched"], operation["done"], operation["skipped"]) == (3, 3, 0)
    assert {run.wait(10)["status"] for run in slow} == {"cancelled"}
    assert {run.events()[-1]["reason"] for run in slow} == {"enough"}
    assert [found["id"] for found in workspace.get("/v1/bulk_operations")["data"]] == [operation["id"]]


def test_terminate_by_filter_leaves_everything_else_alone(service: ServiceThread, workspace: Workspace) -> None:
    made = batch(workspace, [SLOW] * 5, max_concurrent=5)
    path = f"/v1/batches/{made['id']}"
    until(workspace, path, lambda _: len(workspace.get("/v1/runs", batch_id=made["id"], limit=100)["data"]) == 5)
    beside = workspace.start(text=SLOW)
    with service.workspace() as other:
        foreign = other.start(text=SLOW)
        foreign.until(lambda row: row["status"] == "running")
        assert dry(other, "terminate", batch_id=made["id"]) == {}
        assert dry(other, "terminate", agent_id=made["agent"]["id"]) == {}
        operation = done(workspace, bulk(workspace, "terminate", {"batch_id": made["id"]}))
        assert (operation["matched"], operation["done"], operation["status"]) == (5, 5, "completed")
        assert over(workspace, made)["counts"]["terminated"] == 5
        assert (foreign.row["status"], beside.row["finished_at"]) == ("running", None)
        other.get(f"/v1/bulk_operations/{operation['id']}", expect=404)
        assert other.get("/v1/bulk_operations")["data"] == []
        foreign.command("terminate")
        beside.command("terminate")


def test_retry_by_filter_goes_a_few_at_a_time(workspace: Workspace) -> None:
    """Each fails at once in its first attempt, and is slow in the next."""
    once = json.dumps({"script": [{"fail": {"code": "provider_rejected", "message": "no"}}]})
    agent = workspace.agent()["id"]
    made = batch(workspace, [once] * 40, agent=agent, max_concurrent=40)
    over(workspace, made)
    assert dry(workspace, "retry", batch_id=made["id"]) == {"failed": 40}
    operation = bulk(workspace, "retry", {"batch_id": made["id"]})
    most = 0
    deadline = time.monotonic() + 40
    while (row := workspace.get(f"/v1/bulk_operations/{operation['id']}"))["finished_at"] is None:
        counts = workspace.get(f"/v1/batches/{made['id']}")["counts"]
        most = max(most, counts["queued"] + counts["running"])
        assert time.monotonic() < deadline, row
    assert (row["done"], row["skipped"]) == (40, 0)
    assert most <= 16
    runs = until(workspace, f"/v1/batches/{made['id']}", lambda row: row["counts"]["failed"] == 40)
    assert runs["status"] == "completed"
    for run in workspace.get("/v1/runs", batch_id=made["id"], limit=100)["data"]:
        assert run["attempt"] == 2


def test_a_published_event_and_work_in_bulk_do_not_lock_each_other_out(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lock many runs; the one that waits longest is not the one with the lowest id."""
    agent = workspace.agent(tools=["wait_for_event"])["id"]
    wait = json.dumps({"script": [{"tools": [{"name": "wait_for_event", "input": {"event_type": "x"}}]}, {"text": "ok"}]})
    for session in reversed([workspace.post("/v1/sessions", {"agent": agent})["id"] for _ in range(2)]):
        workspace.start(text=wait, agent=agent, session_id=session).until(lambda row: row["waiting_for"] == "event")
    answer = AnswerService._answer  # pyright: ignore[reportPrivateUsage]  # to hold the first lock for a while

    async def slowly(*args: Any) -> Any:
        answered = await answer(*args)
        await asyncio.sleep(1.5)
        return answered

    monkeypatch.setattr(AnswerService, "_answer", slowly)
    with ThreadPoolExecutor() as pool:
        publishing = pool.submit(workspace.post, "/v1/external_events", {"type": "x"}, expect=202)
        time.sleep(0.5)
        operation = bulk(workspace, "cancel", {"agent_id": agent})
        assert publishing.result()["woken"] == 2
    assert done(workspace, operation)["status"] == "completed"


def test_one_that_was_never_started_and_one_that_was_terminated(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        """As if the process had died between the commit and Temporal."""

    run = workspace.start(text=SLOW)
    run.until(lambda row: row["status"] == "running")
    with monkeypatch.context() as patch:
        patch.setattr(RunClient, "work_on", lost)
        first = bulk(workspace, "cancel", {"status": ["running"]})
        second = bulk(workspace, "cancel", {"status": ["running"]})

    late = workspace.start(text=SLOW)

    async def somebody_elses() -> None:
        await service.temporal.start_workflow("bulk_operation", id=second["id"], task_queue="nobody-serves-this")

    service.call(somebody_elses())
    temporal(service, "terminate", "--workflow-id", second["id"])
    monkeypatch.setattr("activities.unfinished.DELIVERY", timedelta())
    sweep(service)
    assert done(workspace, second)["status"] == "terminated"
    assert done(workspace, first)["status"] == "completed"
    assert late.row["cancel_requested_at"] is None, "it came later"
    late.command("terminate")
    assert run.wait(10)["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"action": "cancel", "filter": {}}, "/filter"),
        ({"action": "cancel", "filter": {"status": []}}, "/filter"),
        ({"action": "cancel"}, "/filter"),
        ({"action": "pause", "filter": {"batch_id": "x"}}, "/action"),
        ({"action": "cancel", "filter": {"agent": "x"}}, "/filter/agent"),
        ({"action": "cancel", "filter": {"status": ["idle"]}}, "/filter/status/0"),
        ({"action": "cancel", "filter": {"created_after": "yesterday"}}, "/filter/created_after"),
        ({"action": "cancel", "filter": {"batch_id": "x"}, "dry_run": "yes"}, "/dry_run"),
    ],
)
def test_bad_input_is_pointed_at(workspace: Workspace, body: dict[str, Any], pointer: str) -> None:
    problem = workspace.post("/v1/bulk_operations", body, expect=422)
    assert pointer in [fault["pointer"] for fault in problem["errors"]], problem
