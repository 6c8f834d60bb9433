"""Everything is killed in the middle and started again: the run completes, and its viewer sees one gap-free story."""

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.durability.process import AUTH, KEY, Machine, Up, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(240)]

STOP_SECONDS = 8
"""The ten seconds that the worker gives calls in flight, and a little."""

RING_ONCE = {"text": "one ", "words": 60, "delay_ms": 20, "tools": [{"name": "ring", "input": {"name": "first", "seconds": 0}}]}
RING_LONG = {"thinking": "Again.", "tools": [{"name": "ring", "input": {"name": "second", "seconds": 2.5}}]}
LISTEN = {"tools": [{"name": "listen", "input": {"name": "third", "seconds": 2.5}}]}
TELL = {"thinking": "Nearly there.", "text": "the end ", "words": 120, "delay_ms": 20}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "perdure.toml").write_text('[tools]\nmodules = ["tests.durability.bells"]\n')
    with Machine(tmp_path) as machine:
        yield machine


def start(machine: Machine, *steps: dict[str, Any]) -> str:
    with httpx2.Client(base_url=machine.url, headers=AUTH) as http:
        tools = [{"type": "function", "name": "ring"}, {"type": "function", "name": "listen"}]
        agent = http.post("/v1/agents", json={"name": "bells", "model": "demo:script", "tools": tools})
        assert agent.status_code == 201, agent.text
        run = http.post("/v1/runs", json={"agent": "bells", "input": json.dumps({"script": steps})})
        assert run.status_code == 201, run.text
        return str(run.json()["id"])


def row(machine: Machine, run_id: str) -> dict[str, Any]:
    return httpx2.get(f"{machine.url}/v1/runs/{run_id}", headers=AUTH).json()


def notes(machine: Machine) -> Counter[str]:
    (file,) = machine.data.glob("files/*/*/notes")
    return Counter(file.read_text().splitlines())


def test_killed_at_every_kind_of_moment_the_run_completes_as_one_story(machine: Machine) -> None:
    up = machine.up()
    up.ready()
    run_id = start(machine, RING_ONCE, RING_LONG, LISTEN, TELL)
    with Watching(machine, run_id) as viewer:
        viewer.until("event_delta", 10)
        up = killed_and_started_again(machine, up)  # while text is being written
        viewer.until("agent.tool_result")
        up = killed_and_started_again(machine, up)  # at the seam between a tool and a model call
        viewer.until("agent.tool_started", 2)
        time.sleep(0.3)
        up = killed_and_started_again(machine, up)  # while a tool runs that must not run twice
        viewer.until("agent.tool_result", 2)
        viewer.until("agent.tool_use", 3)
        time.sleep(0.3)
        up = killed_and_started_again(machine, up)  # while a tool runs that may
        viewer.until("agent.tool_result", 3)
        viewer.more("event_delta")
        time.sleep(1)
        up = killed_and_started_again(machine, up)  # while the last text is being written
        viewer.until("done")

    story = viewer.story
    assert story.faults == []
    assert viewer.connections >= 6
    run = row(machine, run_id)
    assert (run["status"], run["step_count"]) == ("completed", 4)
    assert run["output"].startswith("the end ")
    log = httpx2.get(f"{machine.url}/v1/runs/{run_id}/events?limit=1000", headers=AUTH).json()["data"]
    assert [event["id"] for event in story.durable] == [event["id"] for event in log][: len(story.durable)]
    counts = Counter(story.types)
    assert (counts["agent.message"], counts["agent.thinking"], counts["agent.tool_result"]) == (2, 2, 3)
    assert counts["run.completed"] == counts["run.started"] == 1
    starts, ends = counts["span.model_request_start"], counts["span.model_request_end"]
    assert starts == ends > 4, "each lost call is closed, and its text thereby void"
    rung = notes(machine)
    assert (rung["first starts"], rung["second starts"]) == (1, 1)
    assert rung["third starts"] == 2
    unknown = [event for event in log if event["type"] == "agent.tool_result" and event["is_error"]]
    assert ["outcome is unknown" in event["content"][0]["text"] for event in unknown] == [True]


def killed_and_started_again(machine: Machine, up: Up) -> Up:
    children = up.children()
    assert any("temporal" in child.name() for child in children)
    up.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, "the embedded Temporal has outlived its parent"
    again = machine.up()
    again.ready()
    return again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_the_run_goes_on_at_the_next_start(machine: Machine, number: signal.Signals) -> None:
    up = machine.up()
    up.ready()
    run_id = start(machine, {"text": "long ", "words": 800, "delay_ms": 20, "chunk_chars": 6})
    with Watching(machine, run_id) as viewer:
        viewer.until("event_delta", 5)
        children = up.children()
        code, seconds = up.stop(number)
        assert code == 0, up.output
        assert "Traceback" not in up.output
        assert "ASGI" not in up.output, "streams were torn off instead of ended"
        assert seconds < STOP_SECONDS
        assert not psutil.wait_procs(children, timeout=1)[1]
        machine.up().ready()
        assert row(machine, run_id)["status"] == "running"
        viewer.until("span.model_request_start", 2, seconds=15)
    assert viewer.story.faults == []


def test_a_port_that_a_killed_process_still_holds_is_waited_for(machine: Machine) -> None:
    """All of a process that was killed may be gone only a moment after its parent has been told."""
    with socket.socket() as dying:
        dying.bind(("127.0.0.1", int(machine.environment["PERDURE_TEMPORAL_PORT"])))
        dying.listen()
        up = machine.up()
        while not machine.data.joinpath("lock").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        assert up.alive
    up.ready()


def test_what_cannot_start_says_why(machine: Machine, tmp_path: Path) -> None:
    up = machine.up()
    up.ready()

    second = machine.up()
    assert second.process.wait(30) == 1
    assert f"Another Perdure (process {up.process.pid}) uses the data folder {machine.data}" in second.output
    assert "Traceback" not in second.output

    refusals: dict[str, Up] = {}
    for name in ("PERDURE_PORT", "PERDURE_TEMPORAL_PORT", "PERDURE_TEMPORAL_UI_PORT"):
        elsewhere = Machine(tmp_path / name.lower())
        elsewhere.folder.mkdir()
        refusals[name] = elsewhere.up(**{name: str(machine.port)})
    for name, refused in refusals.items():
        assert refused.process.wait(30) == 1
        assert f"set {name} to a free one" in refused.output
        assert "Traceback" not in refused.output

    file = tmp_path / "a file"
    file.touch()
    refused = machine.up(PERDURE_DATA_DIR=str(file))
    assert refused.process.wait(30) == 1
    assert f"The data folder {file} cannot be used" in refused.output
    assert "PERDURE_DATA_DIR" in refused.output
    assert httpx2.get(f"{machine.url}/readyz").status_code == 200, "the first one was disturbed"


def test_the_key_is_shown_once_and_kept_for_the_command_line(machine: Machine) -> None:
    first = machine.up(PERDURE_BOOTSTRAP_KEY="")
    first.ready()
    key = first.output.partition("API key")[2].split()[0]
    profile = machine.data / "profile.json"
    assert profile.stat().st_mode & 0o777 == 0o600
    assert json.loads(profile.read_text()) == {"url": machine.url, "api_key": key}
    assert httpx2.get(f"{machine.url}/v1/agents", headers={"x-api-key": key}).status_code == 200
    first.stop(signal.SIGTERM)

    second = machine.up(PERDURE_BOOTSTRAP_KEY="")
    second.ready()
    assert "API key" not in second.output
    assert KEY not in second.output
    assert httpx2.get(f"{machine.url}/v1/agents", headers={"x-api-key": key}).status_code == 200
