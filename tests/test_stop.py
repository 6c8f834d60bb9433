"""Stop stops: whatever a run is doing, cancel and pause-now end it, and it is only said when it has ended.

The bounds are generous, for machines that are busy; how long it takes is measured by `make bench`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from commands.temporal_server import binary
from tests.providers.faulty import FaultyServer, faulty_thread
from tests.service import RunView, ServiceThread, Workspace, is_delta

SECONDS = 5
"""Far below the next heartbeat that could bring a cancellation late."""
FAMILY = Path(__file__).parent / "family.py"

CONFIG = """
[providers.faulty]
kind = "openai_compatible"
base_url = "{url}/always/v1"
concurrency = 100

[providers.narrow]
kind = "openai_compatible"
base_url = "{url}/always/v1"
concurrency = 1

[providers.family]
kind = "command"
argv = [{python}, "-u", {family}]

[tools]
modules = ["tests.stoppable"]
fetch_allow_hosts = ["127.0.0.1:{port}"]
"""


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyServer]:
    with faulty_thread() as server:
        yield server


@pytest.fixture(scope="module")
def running(
    faulty: FaultyServer, service: ServiceThread, database_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("stop")
    (data / "perdure.toml").write_text(
        CONFIG.format(
            url=faulty.url,
            port=faulty.url.rpartition(":")[2],
            python=json.dumps(sys.executable),
            family=json.dumps(str(FAMILY)),
        )
    )
    with ServiceThread(data, database_url, temporal=service.temporal_address) as started:
        yield started


@pytest.fixture
def workspace(running: ServiceThread) -> Iterator[Workspace]:
    with running.workspace() as fresh:
        yield fresh


@dataclass(frozen=True)
class Going:
    """A run that is in the middle of something."""

    run: RunView
    ended: Callable[[], bool] = lambda: True
    """Whether what it was doing is over, seen from outside."""


@dataclass(frozen=True)
class Place:
    """Where runs are got into the middle of things."""

    service: ServiceThread
    workspace: Workspace
    faulty: FaultyServer

    def notes(self, run: RunView) -> str:
        files = list(self.service.settings.files.glob(f"*/{run.row['session_id']}/notes"))
        return files[0].read_text() if files else ""

    def call(self, provider: str, scenario: str) -> Going:
        model = f"{scenario}~{uuid4().hex[:8]}"
        run = self.workspace.start(text="hi", agent=self.workspace.agent(model=f"{provider}:{model}")["id"])
        until(lambda: model in self.faulty.models)
        return Going(run, lambda: model in self.faulty.left)


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def writing(place: Place) -> Going:
    run = place.workspace.start({"text": "word " * 40000, "delay_ms": 20})
    until(lambda: "span.model_request_start" in run.types())
    time.sleep(0.2)
    return Going(run)


def stalled(place: Place) -> Going:
    return place.call("faulty", "stall")


def silent(place: Place) -> Going:
    return place.call("faulty", "silent")


def backing_off(place: Place) -> Going:
    going = place.call("faulty", "429")
    until(lambda: "session.status_rescheduled" in going.run.types())
    return Going(going.run)


def without_a_slot(place: Place) -> Going:
    first = place.call("narrow", "silent")
    model = f"silent~{uuid4().hex[:8]}"
    run = place.workspace.start(text="hi", agent=place.workspace.agent(model=f"narrow:{model}")["id"])
    time.sleep(0.5)

    def ended() -> bool:
        first.run.command("cancel")
        first.run.wait()
        return model not in place.faulty.models

    return Going(run, ended)


def command(place: Place) -> Going:
    run = place.workspace.start(text="hi", agent=place.workspace.agent(model="family:default")["id"])
    deltas = run.stream(until=is_delta)
    pids = [int(pid) for pid in deltas[-1].data["delta"]["content"]["text"].split()]
    assert len(pids) == 4
    assert all(lives(pid) for pid in pids)
    return Going(run, lambda: not any(lives(pid) for pid in pids))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def async_tool(place: Place) -> Going:
    run = place.workspace.start({"tools": [{"name": "dream"}]}, {"text": "x"}, tools=["dream"])
    until(lambda: "begun" in place.notes(run))
    return Going(run, lambda: "ended" in place.notes(run))


def sync_tool(place: Place) -> Going:
    """A thread cannot be stopped: the run ends all the same, and what the model reads says so."""
    run = place.workspace.start({"tools": [{"name": "drone"}]}, {"text": "x"}, tools=["drone"])
    until(lambda: "begun" in place.notes(run))

    def ended() -> bool:
        (result,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
        return "whether it had an effect is unknown" in result["content"][0]["text"]

    return Going(run, ended)


def fetching(place: Place) -> Going:
    name = uuid4().hex
    url = f"{place.faulty.url}/silent/{name}"
    run = place.workspace.start({"tools": [{"name": "web_fetch", "input": {"url": url}}]}, {"text": "x"}, tools=["web_fetch"])
    until(lambda: f"/silent/{name}" in place.faulty.models)
    return Going(run, lambda: f"/silent/{name}" in place.faulty.left)


def searching(place: Place) -> Going:
    write = {"name": "write", "input": {"file_path": "a.txt", "content": "a" * 60}}
    grep = {"name": "grep", "input": {"pattern": "(a|a)+$!"}}
    run = place.workspace.start({"tools": [write]}, {"tools": [grep]}, {"text": "x"}, tools=["write", "grep"])
    until(lambda: bool(greps()))
    mine = greps()
    return Going(run, lambda: not any(lives(pid) for pid in mine))


def greps() -> set[int]:
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == os.getpid() and b"grep_process.py" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def asking(place: Place) -> Going:
    run = place.workspace.start({"tools": [{"name": "ask_user", "input": {"question": "?"}}]}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")
    return Going(run)


def paused(place: Place) -> Going:
    going = writing(place)
    going.run.command("pause", {"mode": "now"})
    going.run.until(lambda row: row["status"] == "paused")
    return going


MODEL_CALLS = (writing, stalled, silent, backing_off, without_a_slot, command)
TOOL_CALLS = (async_tool, sync_tool, fetching, searching)
WAITS = (asking, paused)
WRITING = (writing, stalled, command, paused)
"""Where text had come when it was stopped."""
Kind = Callable[[Place], Going]
OTHER_WAYS = tuple(pytest.param(way, marks=pytest.mark.single_database) for way in ("api without the bus", "temporal"))
"""How a stop comes makes no difference to the database; what is stopped does."""


@pytest.fixture
def place(running: ServiceThread, workspace: Workspace, faulty: FaultyServer) -> Place:
    return Place(running, workspace, faulty)


@pytest.mark.parametrize("kind", [*MODEL_CALLS, *TOOL_CALLS, *WAITS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["api", *OTHER_WAYS])
def test_cancel(place: Place, kind: Kind, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "api":
        no_bus(place, monkeypatch)
    going = kind(place)

    asked = time.monotonic()
    if way == "temporal":
        temporal(place.service, "cancel", going.run)
    else:
        assert going.run.command("cancel")["cancel_requested_at"] is not None
    row = going.run.wait(SECONDS)

    assert time.monotonic() - asked < SECONDS
    assert (row["status"], row["stop_reason"]["type"]) == ("cancelled", "interrupted")
    assert row["finished_at"] is not None
    assert way == "temporal" or row["cancel_requested_at"] < row["finished_at"]
    assert going.ended(), "it was said that it had ended"
    check_the_story(going.run, "run.cancelled", kind in WRITING)


@pytest.mark.parametrize("kind", MODEL_CALLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["api", OTHER_WAYS[0]])
def test_pause_now(place: Place, kind: Kind, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "api":
        no_bus(place, monkeypatch)
    going = kind(place)

    going.run.command("pause", {"mode": "now"})
    row = going.run.until(lambda row: row["status"] == "paused", SECONDS)

    assert row["pause_requested_at"] < row["paused_at"]
    assert going.ended()
    check_the_story(going.run, "run.paused", kind in WRITING)
    going.run.command("cancel")
    assert going.run.wait(SECONDS)["status"] == "cancelled"


@pytest.mark.parametrize("kind", [stalled, command, async_tool], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["api", "temporal"])
def test_terminate(place: Place, kind: Kind, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_bus(place, monkeypatch)
    going = kind(place)

    if way == "temporal":
        temporal(place.service, "terminate", going.run)
    else:
        going.run.command("terminate")

    until(going.ended, SECONDS)
    if way == "api":  # what is terminated elsewhere, the sweeper settles: tests/test_commands.py
        assert going.run.wait(SECONDS)["status"] == "terminated"
        assert going.run.types()[-1] == "run.terminated"


def test_a_cancellation_that_meets_the_end_of_its_call_settles_the_run(workspace: Workspace) -> None:
    """The flag on the bus ends the call at once, so that its result and the cancellation often come in one workflow task."""
    runs = [workspace.start({"text": "word " * 4000, "delay_ms": 20}) for _ in range(20)]
    for run in runs:
        run.command("cancel")
    for run in runs:
        assert run.wait(SECONDS)["status"] == "cancelled"


def no_bus(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the API is another process and there is no Redis: Temporal's own cancellation must do."""

    def unheard(run_id: str) -> None: ...

    monkeypatch.setattr(place.service.parts.live, "stop", unheard)


def temporal(service: ServiceThread, verb: str, run: RunView) -> None:
    argv = [binary(), "workflow", verb, "-w", run.id, "--address", service.temporal_address]
    subprocess.run(argv, capture_output=True, timeout=20, check=True)


def check_the_story(run: RunView, last: str, partial: bool) -> None:
    """Every call that began has ended, what it had written is kept, and nothing comes after."""
    events = run.events()
    assert events[-1]["type"] == last
    begun = [event["id"] for event in events if event["type"] == "span.model_request_start"]
    assert begun == [event["model_request_start_id"] for event in events if event["type"] == "span.model_request_end"]
    kept = [event for event in events if event["type"] == "agent.message" and event["interrupted"]]
    assert len(kept) == (1 if partial else 0)
