"""Batches: many runs with one call, over HTTP and with a real Temporal."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionDescription

from commands.temporal_server import binary
from domain.urgency import BACKGROUND, ORDINARY
from storage.batches import Batches
from tests.service import RunView, ServiceThread, Workspace
from tests.sweeping import sweep
from workflows.client import RunClient

SLOW = json.dumps({"script": [{"text": "word " * 4000, "delay_ms": 50}]})
FAILS = json.dumps({"script": [{"fail": {"code": "provider_rejected", "message": "no"}}]})


def says(text: str) -> str:
    return json.dumps({"script": [{"text": text}]})


def batch(workspace: Workspace, inputs: list[Any], **members: Any) -> dict[str, Any]:
    agent = members.pop("agent", None) or workspace.agent()["id"]
    return workspace.post("/v1/batches", {"agent": agent, "inputs": inputs, **members}, expect=201)


def until(workspace: Workspace, path: str, condition: Callable[[dict[str, Any]], bool], seconds: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not condition(found := workspace.get(path)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def over(workspace: Workspace, made: dict[str, Any], seconds: float = 30) -> dict[str, Any]:
    return until(workspace, f"/v1/batches/{made['id']}", lambda row: row["finished_at"] is not None, seconds)


def results(workspace: Workspace, made: dict[str, Any]) -> list[dict[str, Any]]:
    response = workspace.http.get(made["links"]["results"])
    assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "application/jsonl")
    return [json.loads(line) for line in response.text.splitlines()]


def test_every_item_becomes_one_run_and_one_stream_tells_of_all(workspace: Workspace) -> None:
    inputs: list[Any] = [says(f"answer {n}") for n in range(298)]
    inputs.append([{"type": "text", "text": says("answer 298")}])
    inputs.append({"input": says("answer 299"), "custom_id": "last", "metadata": {"colour": "red"}})
    made = batch(workspace, inputs, metadata={"of": "tests"})
    assert (made["status"], made["counts"]["total"], made["counts"]["queued"]) == ("running", 300, 300)

    frames = workspace.stream(made["links"]["stream"])
    assert [frame.event for frame in (frames[0], *frames[-2:])] == ["batch.created", "batch.completed", "done"]
    assert frames[-1].data == {"type": "done", "batch_id": made["id"], "status": "completed"}
    assert [int(frame.id) for frame in frames[:-1]] == list(range(1, len(frames)))
    assert {frame.data["batch_id"] for frame in frames} == {made["id"]}
    told = [item for frame in frames if frame.event == "batch.progress" for item in frame.data["finished"]]
    assert sorted(item["index"] for item in told) == list(range(300))
    most = max(frame.data["counts"]["running"] + frame.data["counts"]["completed"] for frame in frames[:-1])
    assert most <= 300
    assert all(frame.data["counts"]["running"] <= 16 for frame in frames[:-1])

    lines = results(workspace, made)
    assert [(line["index"], line["output"], line["status"]) for line in lines] == [
        (n, f"answer {n}", "completed") for n in range(300)
    ]
    assert len({line["run_id"] for line in lines}) == 300
    assert {item["run_id"]: item["index"] for item in told} == {line["run_id"]: line["index"] for line in lines}
    assert (lines[299]["custom_id"], lines[0]["custom_id"]) == ("last", None)
    row = over(workspace, made)
    assert (row["status"], row["counts"]["completed"], row["metadata"]) == ("completed", 300, {"of": "tests"})
    assert row["usage"]["output_tokens"] == sum(line["usage"]["output_tokens"] for line in lines) > 300
    listed = workspace.get("/v1/runs", batch_id=made["id"], limit=100, order="desc")
    assert len(listed["data"]) == 100
    last = listed["data"][0]
    assert (last["kind"], last["batch_id"], last["metadata"]) == ("task", made["id"], {"colour": "red", "custom_id": "last"})
    assert [found["id"] for found in workspace.get("/v1/batches")["data"]] == [made["id"]]


def test_a_viewer_comes_back_where_it_was(workspace: Workspace) -> None:
    made = batch(workspace, [says("hi") for _ in range(30)], max_concurrent=2)
    path = made["links"]["stream"]
    story = workspace.stream(path, until=lambda frame: frame.event == "batch.progress")
    while story[-1].event != "done":
        seen = len(story)
        story += workspace.stream(
            path, last_event_id=story[-1].id, until=lambda frame: frame.event in ("batch.progress", "done")
        )
        assert len(story) > seen
    whole = workspace.stream(path, after=0)
    assert [(frame.id, frame.event, frame.data) for frame in story] == [(frame.id, frame.event, frame.data) for frame in whole]
    assert len(story) > 5
    assert [frame.event for frame in workspace.stream(path, last_event_id=story[-1].id)] == ["done"]
    assert workspace.http.get(path, params={"after": 9999}).status_code == 400


def test_its_log_is_no_session(workspace: Workspace) -> None:
    made = batch(workspace, [says("hi")])
    over(workspace, made)
    sessions = workspace.get("/v1/sessions", include_archived=True)["data"]
    assert [session["message_count"] for session in sessions] == [2]
    assert len(workspace.get("/v1/sessions", agent_id=made["agent"]["id"])["data"]) == 1
    for path in ("", "/events", "/events/stream", "/items", "/threads", "/artifacts"):
        workspace.get(f"/v1/sessions/{made['id']}{path}", expect=404)
    workspace.post(f"/v1/sessions/{made['id']}/messages", {"content": "hi"}, expect=404)
    assert workspace.http.delete(f"/v1/sessions/{made['id']}").status_code == 404
    body = {"agent": made["agent"]["id"], "input": "hi", "session_id": made["id"]}
    workspace.post("/v1/runs", body, expect=404)


def test_cancel_is_said_when_everything_has_stopped(workspace: Workspace) -> None:
    made = batch(workspace, [SLOW] * 30, max_concurrent=3)
    path = f"/v1/batches/{made['id']}"
    until(workspace, path, lambda row: row["counts"]["running"] == 3)
    asked = workspace.post(f"{path}/cancel", {"reason": "enough"}, expect=202)
    assert asked["cancel_requested_at"] is not None
    assert workspace.http.post(f"{path}/cancel").status_code == 202, "without a body, as of a run"
    frames = workspace.stream(made["links"]["stream"])
    events = [frame.event for frame in frames]
    assert events[0] == "batch.created"
    assert events.count("batch.cancel_requested") == 1
    assert events[-2:] == ["batch.cancelled", "done"]
    assert frames[-2].data["reason"] == "enough"
    assert frames[-2].data["counts"] == {**made["counts"], "queued": 0, "cancelled": 30}
    row = workspace.get(path)
    assert (row["status"], row["counts"]["cancelled"]) == ("cancelled", 30)
    lines = results(workspace, made)
    assert Counter(line["status"] for line in lines) == {"cancelled": 30}
    assert [line["index"] for line in lines if line["run_id"]] == [0, 1, 2], "nothing more was begun"
    assert workspace.post(f"{path}/cancel", {}, expect=409)["code"] == "conflict"


def test_a_retried_run_counts_as_what_it_is_and_a_deleted_one_as_that(workspace: Workspace) -> None:
    made = batch(workspace, [FAILS, says("b"), says("c")])
    row = over(workspace, made)
    assert (row["status"], row["counts"]["failed"], row["counts"]["completed"]) == ("completed", 1, 2)
    first, _, third = results(workspace, made)
    assert first["error"]["code"] == "provider_rejected"
    run = RunView(workspace, first["run_id"])
    run.command("retry")
    run.wait()
    assert run.row["attempt"] == 2
    session = RunView(workspace, third["run_id"]).row["session_id"]
    assert workspace.http.delete(f"/v1/sessions/{session}").status_code == 200
    counts = workspace.get(f"/v1/batches/{made['id']}")["counts"]
    assert (counts["failed"], counts["completed"], counts["deleted"]) == (1, 1, 1)
    assert results(workspace, made)[2] | {"output": None, "status": "deleted"} == results(workspace, made)[2]


def test_a_retried_run_that_waits_is_in_the_queue_with_its_input(workspace: Workspace) -> None:
    made = batch(workspace, [FAILS])
    over(workspace, made)
    run = RunView(workspace, results(workspace, made)[0]["run_id"])
    session = f"/v1/sessions/{run.row['session_id']}"
    workspace.post(f"{session}/pause", expect=202)
    run.command("retry")
    (waiting,) = workspace.get(f"{session}/queue")["data"]
    assert waiting["content"] == [{"type": "text", "text": FAILS}]
    assert workspace.http.delete(f"{session}/queue/{waiting['event_id']}").status_code == 200
    assert run.wait()["status"] == "cancelled"


def test_what_an_item_said_is_in_its_session_only(service: ServiceThread, workspace: Workspace) -> None:
    """Who deletes the session deletes all of it."""
    made = batch(workspace, [says("hi"), {"input": says("hi"), "custom_id": "b"}])
    over(workspace, made)

    async def kept() -> list[Any]:
        async with service.parts.database.read() as connection:
            return [item.input for item in await Batches(connection).items(made["id"], 0, 10)]

    assert service.call(kept()) == [[], []]


def test_a_failed_start_is_not_repeated_under_its_key(workspace: Workspace) -> None:
    agent = workspace.agent()["id"]
    body = {"agent": agent, "inputs": [says("hi")]}
    headers = {"Idempotency-Key": "same"}
    first = workspace.post("/v1/batches", body, expect=201, headers=headers)
    assert workspace.post("/v1/batches", body, expect=201, headers=headers)["id"] == first["id"]
    assert len(workspace.get("/v1/batches")["data"]) == 1


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"inputs": []}, "/inputs"),
        ({"inputs": ["a"] * 10_001}, "/inputs"),
        ({"inputs": [*["a"] * 17, ""]}, "/inputs/17"),
        ({"inputs": [*["a"] * 17, 5]}, "/inputs/17"),
        ({"inputs": [*["a"] * 17, {"input": "a", "custom": "b"}]}, "/inputs/17/custom"),
        ({"inputs": [*["a"] * 17, {"custom_id": "b"}]}, "/inputs/17/input"),
        ({"inputs": [*["a"] * 17, [{"type": "image"}]]}, "/inputs/17/0/type"),
        ({"inputs": [{"input": "a", "custom_id": "x"}, "b", {"input": "a", "custom_id": "x"}]}, "/inputs/2/custom_id"),
        ({"max_concurrent": 0}, "/max_concurrent"),
        ({"max_concurrent": 101}, "/max_concurrent"),
        ({"agent": {"name": "a", "model": "none"}}, "/agent/model"),
        ({"more": 1}, "/more"),
    ],
)
def test_bad_input_is_pointed_at(workspace: Workspace, change: dict[str, Any], pointer: str) -> None:
    agent = workspace.agent()["id"]
    problem = workspace.post("/v1/batches", {"agent": agent, "inputs": ["a"], **change}, expect=422)
    assert pointer in [fault["pointer"] for fault in problem["errors"]], problem
    assert workspace.get("/v1/batches")["data"] == []


def test_a_body_over_the_limit(workspace: Workspace) -> None:
    big = {"agent": "a", "inputs": ["x" * 900_000] * 12}
    assert workspace.post("/v1/batches", big, expect=413)["code"] == "too_large"


def test_another_workspaces_batch_is_not_there(service: ServiceThread, workspace: Workspace) -> None:
    made = batch(workspace, [says("hi")])
    over(workspace, made)
    with service.workspace() as other:
        for path in ("", "/results", "/events/stream"):
            other.get(f"/v1/batches/{made['id']}{path}", expect=404)
        other.post(f"/v1/batches/{made['id']}/cancel", {}, expect=404)
        assert other.get("/v1/runs", batch_id=made["id"])["data"] == []
        assert other.get("/v1/batches")["data"] == []
        other.post("/v1/batches", {"agent": made["agent"]["id"], "inputs": ["a"]}, expect=404)
    assert len(workspace.get("/v1/runs", batch_id=made["id"])["data"]) == 1


def temporal(service: ServiceThread, *arguments: str) -> None:
    command = [binary(), "workflow", *arguments, "--address", service.temporal_address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def test_temporals_own_cancel_is_the_same(service: ServiceThread, workspace: Workspace) -> None:
    made = batch(workspace, [SLOW] * 5, max_concurrent=2)
    until(workspace, f"/v1/batches/{made['id']}", lambda row: row["counts"]["running"] == 2)
    temporal(service, "cancel", "--workflow-id", made["id"])
    row = over(workspace, made)
    assert (row["status"], row["counts"]["cancelled"]) == ("cancelled", 5)
    assert len(workspace.get("/v1/runs", batch_id=made["id"])["data"]) == 2
    events = [frame.event for frame in workspace.stream(made["links"]["stream"])]
    assert events.count("batch.cancel_requested") == 1


def test_terminated_in_temporal_it_is_closed_by_the_sweeper(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.unfinished.DELIVERY", timedelta())
    made = batch(workspace, [SLOW] * 5, max_concurrent=2)
    path = f"/v1/batches/{made['id']}"
    until(workspace, path, lambda row: row["counts"]["running"] == 2)
    temporal(service, "terminate", "--workflow-id", made["id"])
    deadline = time.monotonic() + 30
    while workspace.get(path)["finished_at"] is None and time.monotonic() < deadline:
        sweep(service)
    row = until(workspace, path, lambda row: row["counts"]["cancelled"] == 5)
    assert row["status"] == "terminated"
    assert [frame.event for frame in workspace.stream(made["links"]["stream"])][-2:] == ["batch.terminated", "done"]
    assert len(workspace.get("/v1/runs", batch_id=made["id"])["data"]) == 2


def test_one_that_was_never_started_is_by_the_sweeper(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        """As if the process had died between the commit and Temporal."""

    with monkeypatch.context() as patch:
        patch.setattr(RunClient, "work_on", lost)
        made = batch(workspace, [says("hi")] * 3)
    monkeypatch.setattr("activities.unfinished.DELIVERY", timedelta())
    sweep(service)
    assert over(workspace, made)["counts"]["completed"] == 3


def test_somebody_who_waits_does_not_wait_for_a_batch(tmp_path: Path) -> None:
    """The batch wants eight calls at once of a provider that takes two."""
    (tmp_path / "perdure.toml").write_text('[providers.narrow]\nkind = "scripted"\nconcurrency = 2\n')
    one_second = json.dumps({"script": [{"text": "word " * 20, "delay_ms": 120, "chunk_chars": 10}]})
    with ServiceThread(tmp_path, None) as service, service.workspace() as workspace:
        agent = workspace.agent(model="narrow:script")["id"]
        made = batch(workspace, [one_second] * 24, agent=agent, max_concurrent=8)
        until(workspace, f"/v1/batches/{made['id']}", lambda row: row["counts"]["completed"] >= 1)
        took: list[float] = []
        for _ in range(3):
            began = time.monotonic()
            workspace.start({"text": "quick"}, agent=agent).wait()
            took.append(time.monotonic() - began)
        row = workspace.get(f"/v1/batches/{made['id']}")
        assert row["counts"]["queued"] > 8, "the batch is still at it"
        # In one line with the batch's eight, each would wait for four of its calls, five seconds and more.
        assert max(took) < 3, took

        def described(id: str) -> WorkflowExecutionDescription:
            async def describe() -> WorkflowExecutionDescription:
                return await service.temporal.get_workflow_handle(id).describe()

            return service.call(describe())

        def priority(id: str) -> tuple[int, str]:
            found = described(id).raw_description.workflow_execution_info.priority
            return found.priority_key, found.fairness_key

        of_batch = workspace.get("/v1/runs", batch_id=made["id"])["data"][0]
        own = workspace.start({"text": "quick"}, agent=agent)
        attributes = described(own.id).typed_search_attributes
        assert priority(own.id)[0] == ORDINARY
        assert priority(of_batch["id"]) == priority(made["id"]) == (BACKGROUND, priority(own.id)[1])
        assert priority(own.id)[1] in str(attributes)
        workspace.post(f"/v1/batches/{made['id']}/cancel", {}, expect=202)
        over(workspace, made)
