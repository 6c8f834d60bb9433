"""Records the histories that test_replay.py replays: `python -m tests.replay.record`. Old ones stay as they are."""

import asyncio
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from temporalio.client import Client

from tests.durability.process import AUTH, Fleet
from tests.service import RunView, ServiceThread, Workspace, is_delta

HISTORIES = Path(__file__).parent / "histories"
STEP = {"tools": [{"name": "read", "input": {"file_path": "none"}}, {"name": "glob", "input": {"pattern": "*"}}]}
SLOW = {"text": "one two three " * 20, "delay_ms": 50}


def _steps(workspace: Workspace) -> RunView:
    return workspace.start(STEP, STEP, {"text": "end"}, tools=["read", "glob"])


def _paused(workspace: Workspace) -> RunView:
    run = workspace.start(SLOW, {"text": "end"})
    run.stream(until=is_delta)
    run.command("pause", {"mode": "now"})
    run.until(lambda row: row["status"] == "paused")
    run.command("resume")
    return run


def _cancelled(workspace: Workspace) -> RunView:
    run = workspace.start(SLOW)
    run.stream(until=is_delta)
    run.command("cancel")
    return run


def _asked(workspace: Workspace) -> RunView:
    run = workspace.start({"tools": [{"name": "ask_user", "input": {"question": "?"}}]}, {"text": "end"}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")
    run.command("input", {"content": "answer"})
    return run


def _failed(workspace: Workspace) -> RunView:
    first = {"fail": {"code": "unavailable", "times": 1}, "text": "x", **STEP}
    return workspace.start(first, {"fail": {"code": "rejected"}}, tools=["read"])


def _limited(workspace: Workspace) -> RunView:
    limits = {"max_steps": 1, "max_seconds": 60, "on_limit": "pause"}
    run = workspace.start(STEP, {"text": "end"}, tools=["read"], limits=limits)
    run.until(lambda row: row["status"] == "paused")
    run.command("resume")
    return run


def _delegated(workspace: Workspace) -> RunView:
    """Two sub-agents, one at a time, that are paused and go on."""
    agent = workspace.agent(multiagent={"agents": [{"type": "self"}], "max_concurrent": 1})
    asked = {"name": "delegate", "input": {"agent": agent["name"], "task": json.dumps({"script": [SLOW, {"text": "end"}]})}}
    limits = {"max_output_tokens": 10_000}
    run = workspace.start({"tools": [asked, asked]}, {"text": "end"}, agent=agent["id"], limits=limits)
    run.until(lambda row: "session.thread_created" in run.types())
    run.command("pause", {"mode": "now"})
    run.until(lambda row: row["status"] == "paused")
    run.command("resume")
    return run


def _titled(workspace: Workspace) -> RunView:
    """A turn behind which a title is written and the next turn begins."""
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:demo")["id"]})["id"]
    said = [{"content": json.dumps({"script": [text, {"text": "Title"}]})} for text in (SLOW, {"text": "end"})]
    first, _ = [workspace.post(f"/v1/sessions/{session}/messages", body)["run"]["id"] for body in said]
    while workspace.get(f"/v1/sessions/{session}")["title"] is None:
        time.sleep(0.1)
    time.sleep(1)  # until the workflow is closed
    return RunView(workspace, first)


def _compacted(workspace: Workspace) -> RunView:
    """A turn that is longer than its context, so that what is older is summarised in its middle."""
    agent = workspace.agent(tools=["read", "glob"], context={"max_tokens": 1_500})
    return workspace.start(*[{**STEP, "text": "word " * 200}] * 5, {"text": "end"}, agent=agent["id"])


KINDS: dict[str, Callable[[Workspace], RunView]] = {
    "steps": _steps,
    "paused": _paused,
    "cancelled": _cancelled,
    "asked": _asked,
    "failed": _failed,
    "limited": _limited,
    "delegated": _delegated,
    "titled": _titled,
    "compacted": _compacted,
}


def _handed_back(folder: Path) -> str:
    """Two workers one after the other, of which the first is told to stop in the middle of a model call."""
    with Fleet(folder) as fleet:
        fleet.temporal()
        fleet.migrate()
        api = fleet.api()
        api.ready()
        leaving = fleet.worker(PERDURE_DRAIN_SECONDS="0.2")
        with httpx2.Client(base_url=api.url, headers=AUTH, timeout=60) as http:
            agent = http.post("/v1/agents", json={"name": "a", "model": "demo:script"}).json()["id"]
            script = json.dumps({"script": [{"text": "one two three", "stall_attempts": 1}]})
            run_id = http.post("/v1/runs", json={"agent": agent, "input": script}).json()["id"]
            while "span.model_request_start" not in http.get(f"/v1/runs/{run_id}/events").text:
                time.sleep(0.1)
            leaving.stop()
            fleet.worker().says("worker is ready")
            assert http.get(f"/v1/runs/{run_id}/wait?timeout_seconds=30").json()["status"] == "completed"
        return asyncio.run(_history(fleet.temporal_address, run_id))


async def _history(address: str, run_id: str) -> str:
    client = await Client.connect(address)
    text = (await client.get_workflow_handle(run_id).fetch_history()).to_json()
    # What names this machine or its folders has no place in the repository.
    text = re.sub(r"\d+@[A-Za-z0-9_.-]+", "1@worker", text)
    return re.sub(r'"stackTrace": "(?:[^"\\]|\\.)*"', '"stackTrace": ""', text)


def main() -> None:
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as data, ServiceThread(Path(data), None) as service, service.workspace() as workspace:
        for name, make in KINDS.items():
            path = HISTORIES / f"{name}.json"
            if path.exists():
                continue
            run = make(workspace)
            run.wait()
            path.write_text(service.call(_history(service.temporal_address, run.id)))
    handed_back = HISTORIES / "handed_back.json"
    if not handed_back.exists():
        with tempfile.TemporaryDirectory() as folder:
            handed_back.write_text(_handed_back(Path(folder)))


if __name__ == "__main__":
    main()
