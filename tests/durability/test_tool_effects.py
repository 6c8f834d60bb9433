"""`read`, `idempotent` and `once`, for a worker that is killed before, during and after the call, or only frozen."""

import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from activities.tools import UNKNOWN_OUTCOME
from tests.durability.process import AUTH, Machine, Up, Watching
from tests.service import ServiceThread

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(240)]

TOOLS = ("look", "put", "pay")


@dataclass(frozen=True)
class Note:
    pid: int
    word: str
    name: str
    key: str


class Till:
    """The tools' own record, and the word that lets them go on."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "till"
        self.file.touch()

    def notes(self) -> list[Note]:
        lines = [line.split() for line in self.file.read_text().splitlines()]
        return [Note(int(pid), word, name, key) for pid, word, name, key in lines]

    def go(self, *names: str) -> None:
        for name in names:
            self.file.with_name(f"go-{name}").touch()

    def come_to(self, word: str) -> set[str]:
        """The calls that have come that far."""
        return {note.name for note in self.notes() if note.word == word}

    def started(self) -> set[str]:
        return self.come_to("starts")


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def till(tmp_path: Path) -> Till:
    return Till(tmp_path)


def config(folder: Path, more: str = "") -> None:
    (folder / "perdure.toml").write_text(f'[tools]\nmodules = ["tests.durability.tills"]\n{more}')


def call(tool: str, name: str) -> dict[str, Any]:
    return {"name": tool, "input": {"name": name}}


def start(url: str, *steps: dict[str, Any]) -> str:
    with httpx2.Client(base_url=url, headers=AUTH) as http:
        tools = [{"type": "function", "name": tool} for tool in TOOLS]
        agent = http.post("/v1/agents", json={"name": f"till-{uuid4().hex[:6]}", "model": "demo:script", "tools": tools})
        body = {"agent": agent.json()["id"], "input": json.dumps({"script": steps})}
        return str(http.post("/v1/runs", json=body).raise_for_status().json()["id"])


class Told:
    """The run's log: what the model was told of each call."""

    def __init__(self, url: str, run_id: str) -> None:
        self.run = httpx2.get(f"{url}/v1/runs/{run_id}", headers=AUTH).json()
        self.log = httpx2.get(f"{url}/v1/runs/{run_id}/events?limit=1000", headers=AUTH).json()["data"]
        self.uses = {e["input"]["name"]: e["id"] for e in self.log if e["type"] == "agent.tool_use"}
        self.results: dict[str, list[dict[str, Any]]] = {
            name: [e for e in self.log if e["type"] == "agent.tool_result" and e["tool_use_id"] == use]
            for name, use in self.uses.items()
        }

    def text(self, name: str) -> str:
        (result,) = self.results[name]  # one, ever
        assert result["is_error"] == ("unknown" in result["content"][0]["text"])
        return str(result["content"][0]["text"])


@pytest.fixture
def machine(tmp_path: Path, till: Till) -> Iterator[Machine]:
    # Three calls at once: of four in one step, three run and one has not begun when the worker is killed.
    config(tmp_path, "[queues]\nperdure = 3\n")
    with Machine(tmp_path, TILL_NOTES=str(till.file)) as machine:
        yield machine


def test_a_worker_killed_before_during_and_after_a_call(machine: Machine, till: Till) -> None:
    together = {tool: [f"{tool}-{n}" for n in range(4)] for tool in TOOLS}
    after = [f"{tool}-after" for tool in TOOLS]
    before: set[str] = set()
    up = machine.up()
    up.ready()
    run_id = start(
        machine.url,
        *({"tools": [call(tool, name) for name in together[tool]]} for tool in TOOLS),
        {"tools": [call(tool, f"{tool}-after") for tool in TOOLS]},
        {"tools": [call("pay", "entering")]},
        {"text": "The end."},
    )
    with Watching(machine, run_id) as viewer:
        for names in together.values():
            wait_for(lambda names=names: len(till.started() & set(names)) == 3)
            before |= set(names) - till.started()
            up = again(machine, up)
            till.go(*names)

        wait_for(lambda: till.started() >= set(after))
        with locked(machine):
            till.go(*after)
            wait_for(lambda: till.come_to("done") >= set(after))
            time.sleep(0.3)  # the tools have returned, and their results cannot be written
            up.kill()
        up = again(machine, up)

        wait_for(lambda: "entering" in till.come_to("enters"))
        up = again(machine, up)
        viewer.until("done")

    told = Told(machine.url, run_id)
    assert (told.run["status"], told.run["output"]) == ("completed", "The end.")
    assert viewer.story.faults == []
    starts = Counter(note.name for note in till.notes() if note.word == "starts")
    assert len(before) == 3
    for name in (*together["look"], *together["put"], *together["pay"], *after):
        if name in before:
            assert (starts[name], told.text(name)) == (1, f"{name} is done"), "it had not begun: it is simply run"
        elif name.startswith("pay"):
            assert (starts[name], told.text(name)) == (1, UNKNOWN_OUTCOME)
        else:
            assert (starts[name], told.text(name)) == (2, f"{name} is done")
    # Nobody can know that it never ran: its start had been committed.
    assert (starts["entering"], told.text("entering")) == (0, UNKNOWN_OUTCOME)
    for note in till.notes():
        if note.word == "starts":
            assert note.key == f"{run_id}/{told.uses[note.name]}", "the same key at each start"


def again(machine: Machine, up: Up) -> Up:
    up.kill()
    up = machine.up()
    up.ready()
    return up


@contextmanager
def locked(machine: Machine) -> Generator[None]:
    """Nobody else can write to the database meanwhile."""
    with closing(sqlite3.connect(machine.data / "perdure.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_a_frozen_worker_that_wakes_up_changes_nothing(service: ServiceThread, tmp_path: Path, till: Till) -> None:
    """It was given up after its heartbeat's time-out, another has taken its calls over, and then it goes on."""
    config(tmp_path)
    queue = f"test-{uuid4().hex[:8]}"
    names = [f"{tool}-frozen" for tool in TOOLS]
    environment = {
        "TILL_NOTES": str(till.file),
        "TEMPORAL_ADDRESS": service.temporal_address,
        "PERDURE_TASK_QUEUE": queue,
    }
    with Machine(tmp_path, **environment) as machine:
        machine.perdure("api")
        # Room for its four calls and no more: a frozen worker that asks for tasks is given them.
        first = machine.perdure("worker", "--queues", f"{queue}=4").process
        wait_for(lambda: ready(machine))
        tools = start(machine.url, {"tools": [call(tool, f"{tool}-frozen") for tool in TOOLS]}, {"text": "The end."})
        wait_for(lambda: till.started() == set(names))
        model = start(machine.url, {"text": "Late, but once.", "first_token_ms": 3000})
        wait_for(lambda: model_calls(machine, model) == 1)
        first.send_signal(signal.SIGSTOP)
        second = machine.perdure("worker").process
        taken_over = {("look-frozen", second.pid), ("put-frozen", second.pid)}
        wait_for(lambda: {(n.name, n.pid) for n in till.notes()} >= taken_over and model_calls(machine, model) == 2)
        till.go(*names)
        first.send_signal(signal.SIGCONT)
        for run_id in (tools, model):
            wait_for(lambda run_id=run_id: Told(machine.url, run_id).run["status"] == "completed")
        time.sleep(1)  # whatever the first worker still wants to say

        told = Told(machine.url, tools)
        starts = Counter(note.name for note in till.notes() if note.word == "starts")
        assert starts == {"look-frozen": 2, "put-frozen": 2, "pay-frozen": 1}
        assert [told.text(name) for name in names] == ["look-frozen is done", "put-frozen is done", UNKNOWN_OUTCOME]
        assert len({note.key for note in till.notes() if note.name == "put-frozen"}) == 1
        check_one_story(Told(machine.url, model).log)


def ready(machine: Machine) -> bool:
    try:
        return httpx2.get(f"{machine.url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def model_calls(machine: Machine, run_id: str) -> int:
    return sum(event["type"] == "span.model_request_start" for event in Told(machine.url, run_id).log)


def check_one_story(log: list[dict[str, Any]]) -> None:
    """The first attempt is void, and everything comes from the second."""
    starts = [event["id"] for event in log if event["type"] == "span.model_request_start"]
    ends = [(e["model_request_start_id"], e["is_error"]) for e in log if e["type"] == "span.model_request_end"]
    assert ends == [(starts[0], True), (starts[1], False)]
    assert [e["content"][0]["text"] for e in log if e["type"] == "agent.message"] == ["Late, but once."]
