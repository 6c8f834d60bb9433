"""API and workers as separate processes: started in any order, joined by Redis or by the log alone."""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import DATABASE
from tests.durability.process import AUTH, Fleet
from tests.postgres import PostgresServer
from tests.redis import PROGRAM
from tests.service import Frame, is_delta, parse

pytestmark = pytest.mark.timeout(180)
POSTGRES = DATABASE == "postgres"
TELL = {"first_token_ms": 800, "text": "the tale ", "words": 200, "delay_ms": 40}


@pytest.fixture
def fresh_url(postgres: PostgresServer | None) -> str | None:
    """An empty database; None: SQLite in the data folder."""
    return None if postgres is None else postgres.create_database()


@pytest.fixture
def joined(tmp_path: Path, fresh_url: str | None) -> Iterator[Fleet]:
    with Fleet(tmp_path, fresh_url, redis=True) as fleet:
        yield fleet


def start(fleet: Fleet, *steps: dict[str, Any], model: str = "demo:script") -> str:
    body = {"agent": {"name": "tell", "model": model}, "input": json.dumps({"script": steps})}
    run = httpx2.post(f"{fleet.urls[0]}/v1/runs", json=body, headers=AUTH)
    assert run.status_code == 201, run.text
    return str(run.json()["id"])


def watch(fleet: Fleet, run_id: str, last_event_id: str | None = None, stop_after: int | None = None) -> list[Frame]:
    """Over a connection of its own, which the kernel gives to any of the API processes."""
    headers = AUTH | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    frames: list[Frame] = []
    with httpx2.stream("GET", f"{fleet.urls[0]}/v1/runs/{run_id}/events/stream", headers=headers, timeout=30) as response:
        assert response.status_code == 200
        for frame in parse(response.iter_lines()):
            frames.append(frame)
            if stop_after is not None and sum(map(is_delta, frames)) >= stop_after:
                break
    return frames


def answered(connection: HTTPConnection) -> HTTPConnection:
    connection.request("GET", "/livez")
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    return connection


def text(frames: list[Frame]) -> str:
    return "".join(frame.data["delta"]["content"]["text"] for frame in frames if is_delta(frame))


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_previews_go_on_at_any_api_process(joined: Fleet) -> None:
    joined.temporal()
    joined.redis()
    joined.api()
    joined.api(joined.ports[0])
    joined.worker()
    joined.ready()
    run_id = start(joined, TELL)
    frames = watch(joined, run_id, stop_after=8)
    for _ in range(4):  # each connection is taken by one or the other
        more = watch(joined, run_id, last_event_id=frames[-1].id, stop_after=4)
        assert is_delta(more[0]) or more[0].event == "event_start"
        frames += more
    late = watch(joined, run_id, stop_after=1)
    assert text(late).startswith(text(frames)), "who joins late gets the text from its beginning"
    frames += watch(joined, run_id, last_event_id=frames[-1].id)

    final = next(frame.data["content"][0]["text"] for frame in frames if frame.event == "agent.message")
    assert final.startswith(text(frames))
    assert len(text(frames)) > 0.8 * len(final)
    assert frames[-1].event == "done"
    seqs = [int(frame.id) for frame in frames if "seq" in frame.data]
    assert seqs == list(range(1, seqs[-1] + 1))


def test_without_a_bus_viewers_follow_the_log(tmp_path: Path, fresh_url: str | None) -> None:
    """And a queue of its own is served by who is told to."""
    (tmp_path / "perdure.toml").write_text('[providers.apart]\nkind = "scripted"\nqueue = "model.apart"\n')
    with Fleet(tmp_path, fresh_url) as fleet:
        fleet.temporal()
        fleet.api()
        fleet.worker("--queues", "perdure=50")
        fleet.ready()
        idle = answered(HTTPConnection("127.0.0.1", fleet.ports[0]))
        since = time.monotonic()
        apart = start(fleet, {"text": "from apart"}, model="apart:script")
        frames = watch(fleet, start(fleet, {"text": "the tale"}))
        assert not any(map(is_delta, frames))
        assert [frame.event for frame in frames][-2:] == ["run.completed", "done"]
        assert httpx2.get(f"{fleet.urls[0]}/v1/runs/{apart}", headers=AUTH).json()["started_at"] is None
        fleet.worker("--queues", "model.apart=2")
        assert watch(fleet, apart)[-1].data["status"] == "completed"
        time.sleep(max(0, 6.5 - (time.monotonic() - since)))  # most servers close an idle connection after five
        answered(idle).close()


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_each_process_waits_for_what_it_needs_and_says_so(joined: Fleet) -> None:
    api, worker = joined.api(), joined.worker()
    worker.says("waiting for Temporal")
    # The API needs only its database: what it accepts now happens later.
    api.says("Perdure is up.")
    assert httpx2.get(f"{api.url}/readyz").status_code == 503
    run_id = start(joined, {"text": "at last"})
    joined.temporal(prepared=False)
    assert watch(joined, run_id)[-1].data["status"] == "completed"
    joined.redis()
    joined.ready()


@pytest.mark.usefixtures("postgres")  # which is its round; the database that it waits for is nowhere
@pytest.mark.skipif(not POSTGRES, reason="SQLite is never away")
def test_api_and_worker_wait_for_the_database(tmp_path: Path) -> None:
    with Fleet(tmp_path, "postgresql+psycopg://nobody:secret@127.0.0.1:1/none") as fleet:
        for process in (fleet.api(), fleet.worker()):
            process.says("waiting for the database")
            assert process.alive
            assert "secret" not in process.output
