"""A process is told to stop: what it was doing goes on at another one, as if nothing had happened."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from tests.durability.process import AUTH, Fleet, Process, Watching

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]

DRAIN = {"PERDURE_DRAIN_SECONDS": "1"}
CONFIG = """
[tools]
modules = ["tests.durability.bells"]
[providers.narrow]
kind = "scripted"
concurrency = 1
"""
END = {"text": "the end"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "perdure.toml").write_text(CONFIG)
    with Fleet(folder) as fleet:
        fleet.temporal()
        fleet.api().ready()
        yield fleet


@pytest.fixture
def http(fleet: Fleet) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=30) as http:
        yield http


class Workers:
    """One after the other: the successor of one test is the one that leaves in the next."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.current = self._start()

    def successor(self) -> Process:
        """Start it beside the current one, which is returned."""
        leaving, self.current = self.current, self._start()
        return leaving

    def _start(self) -> Process:
        worker = self._fleet.worker(**DRAIN)
        worker.says("worker is ready")
        return worker


@pytest.fixture(scope="module")
def workers(fleet: Fleet) -> Workers:
    return Workers(fleet)


def start(http: httpx2.Client, *steps: dict[str, Any], model: str = "demo:script", tools: Sequence[Any] = ()) -> str:
    agent = http.post("/v1/agents", json={"name": f"a{time.monotonic_ns()}", "model": model, "tools": list(tools)})
    assert agent.status_code == 201, agent.text
    run = http.post("/v1/runs", json={"agent": agent.json()["id"], "input": json.dumps({"script": steps})})
    assert run.status_code == 201, run.text
    return str(run.json()["id"])


def over(http: httpx2.Client, run_id: str, seconds: float = 30) -> dict[str, Any]:
    row = http.get(f"/v1/runs/{run_id}/wait?timeout_seconds={seconds}", timeout=seconds + 10).json()
    assert row["finished_at"] is not None, row
    return row


def events(http: httpx2.Client, run_id: str, type: str) -> list[dict[str, Any]]:
    log = http.get(f"/v1/runs/{run_id}/events?limit=1000").json()["data"]
    return [event for event in log if event["type"] == type]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def history(fleet: Fleet, run_id: str) -> list[HistoryEvent]:
    async def fetch() -> list[HistoryEvent]:
        client = await Client.connect(fleet.temporal_address)
        return list((await client.get_workflow_handle(run_id).fetch_history()).events)

    return asyncio.run(fetch())


def test_a_model_call_is_handed_back_without_burning_an_attempt(fleet: Fleet, workers: Workers, http: httpx2.Client) -> None:
    told = start(
        http,
        {"text": "told", "words": 20, "fail": {"code": "unavailable", "times": 1}, "stall_attempts": 2},
        model="narrow:script",
    )
    with Watching(fleet, told) as viewer:
        viewer.until("span.model_request_start", 2)
        waiting = start(http, {"text": "short"}, model="narrow:script")  # for the provider's only slot
        leaving = workers.successor()
        code, seconds = leaving.stop()
        left = time.monotonic()
        again = viewer.until("span.model_request_start", 3)
        viewer.until("done")

    assert (code, "Traceback" in leaving.output) == (0, False), leaving.output
    assert 1 <= seconds < 5
    assert again - left < 2, "the call has waited for a time-out"
    assert viewer.story.faults == []
    row = over(http, told)
    assert (row["status"], row["step_count"]) == ("completed", 1)
    ends = events(http, told, "span.model_request_end")
    assert [(end["attempt"], end["error"] and end["error"]["code"]) for end in ends] == [
        (1, "provider_unavailable"),
        (2, "handed_back"),
        (3, None),
    ]
    assert over(http, waiting)["output"] == "short"
    assert [start["attempt"] for start in events(http, waiting, "span.model_request_start")] == [1]
    calls = [
        event.activity_task_scheduled_event_attributes.retry_policy.maximum_attempts
        for event in history(fleet, told)
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == "model.complete"
    ]
    assert calls == [12, 11], "one attempt has failed; the one that was handed back counts for nothing"


def test_tools_are_run_again_or_their_outcome_is_unknown(fleet: Fleet, workers: Workers, http: httpx2.Client) -> None:
    steps = [{"tools": [{"name": name, "input": {"name": name, "seconds": 30}} for name in ("ring", "listen", "pay")]}, END]
    bells = [{"type": "function", "name": name} for name in ("ring", "listen", "pay")]
    run_id = start(http, *steps, tools=bells)
    with Watching(fleet, run_id) as viewer:
        viewer.until("agent.tool_started")
        time.sleep(0.3)
        leaving = workers.successor()
        code, _ = leaving.stop()
        viewer.until("done")

    assert code == 0
    (notes,) = (file for file in fleet.data.glob("files/*/*/notes") if "ring" in file.read_text())
    noted = Counter(notes.read_text().splitlines())
    uses = {use["name"]: use["id"] for use in events(http, run_id, "agent.tool_use")}
    assert noted == {"ring starts": 1, "listen starts": 2, "listen ends": 1, f"pay under {run_id}/{uses['pay']}": 2}
    results = {result["tool_use_id"]: result for result in events(http, run_id, "agent.tool_result")}
    assert [results[uses[name]]["is_error"] for name in ("ring", "listen", "pay")] == [True, False, False]
    assert "outcome is unknown" in results[uses["ring"]]["content"][0]["text"]
    assert (over(http, run_id)["status"], viewer.story.faults) == ("completed", [])


def test_a_command_that_races_with_the_shutdown_wins(workers: Workers, http: httpx2.Client) -> None:
    runs = [start(http, {"text": "long", "words": 500, "delay_ms": 40, "stall_attempts": 1}, END) for _ in range(8)]
    for run_id in runs:
        until(lambda run_id=run_id: bool(events(http, run_id, "span.model_request_start")))
    leaving = workers.successor()
    leaving.process.terminate()
    told = time.monotonic()
    for number, run_id in enumerate(runs):  # from before its second of grace is over until after
        time.sleep(max(0, told + 0.7 + number * 0.09 - time.monotonic()))
        cancel = number % 2 == 0
        answer = http.post(f"/v1/runs/{run_id}/{'cancel' if cancel else 'pause'}", json={} if cancel else {"mode": "now"})
        assert answer.status_code == 202, answer.text
    leaving.process.wait(10)

    for run_id in runs[0::2]:
        assert over(http, run_id, 5)["status"] == "cancelled"
    for run_id in runs[1::2]:
        until(lambda run_id=run_id: http.get(f"/v1/runs/{run_id}").json()["status"] == "paused")
        assert http.post(f"/v1/runs/{run_id}/resume").status_code == 202
    for run_id in runs[1::2]:
        assert over(http, run_id)["status"] == "completed"
    for run_id in runs:
        assert len(events(http, run_id, "span.model_request_start")) == len(events(http, run_id, "span.model_request_end"))


def test_an_api_says_farewell_and_finishes_what_is_in_flight(fleet: Fleet) -> None:
    leaving = fleet.api(PERDURE_LEAVE_SECONDS="4")
    leaving.ready()
    fleet.ports.pop()
    opened = threading.Semaphore(0)
    with httpx2.Client(base_url=leaving.url, headers=AUTH, timeout=30) as http, ThreadPoolExecutor(30) as threads:
        run_id = start(http, {"text": "long", "words": 20, "stall_attempts": 1})
        streams = [threads.submit(_stream, leaving.url, run_id, opened) for _ in range(20)]
        waiting = threads.submit(
            httpx2.get, f"{leaving.url}/v1/runs/{run_id}/wait?timeout_seconds=60", headers=AUTH, timeout=30
        )
        for _ in streams:
            assert opened.acquire(timeout=10)
        leaving.process.terminate()
        told = time.monotonic()
        texts = [stream.result(10) for stream in streams]
        assert time.monotonic() - told < 3, "the streams have not ended at once"
        assert waiting.result(10).json()["finished_at"] is None
        refused = http.get("/readyz")
        late = http.get(f"/v1/runs/{run_id}")
        assert (refused.status_code, refused.json()["leaving"], late.status_code) == (503, True, 200)
        assert late.headers["Connection"] == "close"
        assert _stream(leaving.url, run_id, opened).count("going away") == 1
        assert leaving.process.wait(10) == 0
    farewells = [text.rpartition("\n\n: server is going away\nretry: ") for text in texts]
    assert all("event: run.queued" in before for before, _, _ in farewells)
    retries = {int(retry) for _, _, retry in farewells}
    assert len(retries) > 10
    assert all(500 <= retry <= 4000 for retry in retries)
    assert "Traceback" not in leaving.output
    assert "ASGI" not in leaving.output


def _stream(url: str, run_id: str, opened: threading.Semaphore) -> str:
    """All of a run's stream. Raises when the connection is torn off."""
    text = ""
    with httpx2.stream("GET", f"{url}/v1/runs/{run_id}/events/stream", headers=AUTH, timeout=30) as response:
        for piece in response.iter_text():
            text += piece
            if "run.queued" in piece:
                opened.release()
    return text
