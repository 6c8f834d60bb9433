"""Batches: many runs with one call, over HTTP and with a real Temporal."""

import json
import time
from collections.abc import Callable
from typing import Any

from tests.service import Frame, ServiceThread, Workspace

QUICK = json.dumps({"script": [{"text": "quick"}]})
SLOW = json.dumps({"script": [{"text": "word " * 400, "delay_ms": 50}]})


def batch(workspace: Workspace, inputs: list[Any], **members: Any) -> dict[str, Any]:
    agent = members.pop("agent", None) or workspace.agent()["id"]
    return workspace.post("/v1/batches", {"agent": agent, "inputs": inputs, **members}, expect=201)


def until(
    workspace: Workspace, path: str, condition: Callable[[dict[str, Any]], bool], seconds: float = 30
) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not condition(found := workspace.get(path)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def results(workspace: Workspace, batch_id: str) -> list[dict[str, Any]]:
    response = workspace.http.get(f"/v1/batches/{batch_id}/results")
    assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "application/jsonl")
    return [json.loads(line) for line in response.text.splitlines()]


def test_three_hundred_items(workspace: Workspace) -> None:
    inputs: list[Any] = [json.dumps({"script": [{"text": f"answer {n}"}]}) for n in range(298)]
    inputs.append([{"type": "text", "text": json.dumps({"script": [{"text": "answer 298"}]})}])
    inputs.append({"input": QUICK, "custom_id": "last", "metadata": {"colour": "red"}})
    began = time.monotonic()
    made = batch(workspace, inputs, metadata={"of": "tests"}, max_concurrent=16)
    print("created", time.monotonic() - began)
    assert made["counts"]["queued"] == made["counts"]["total"] == 300

    frames = workspace.stream(f"/v1/batches/{made['id']}/events/stream", after=0)
    print("done", time.monotonic() - began, len(frames))
    assert [frame.event for frame in (frames[0], *frames[-2:])] == ["batch.created", "batch.completed", "done"]
    assert frames[-1].data == {"type": "done", "batch_id": made["id"], "status": "completed"}
    finished = [item for frame in frames if frame.event == "batch.progress" for item in frame.data["finished"]]
    assert sorted(item["index"] for item in finished) == list(range(300))
