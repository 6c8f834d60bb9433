"""API and workers as separate processes: started in any order, joined by Redis or by the log alone."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.chaos.cluster import AUTH, Cluster
from tests.conftest import DATABASE
from tests.redis import PROGRAM
from tests.service import Frame, is_delta, parse

pytestmark = pytest.mark.timeout(180)
POSTGRES = DATABASE == "postgres"
TELL = {"first_token_ms": 800, "text": "the tale ", "words": 100, "delay_ms": 30}


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, postgres=POSTGRES, redis=True) as cluster:
        yield cluster


def start(cluster: Cluster, *steps: dict[str, Any], model: str = "demo:script") -> str:
    body = {"agent": {"name": "tell", "model": model}, "input": json.dumps({"script": steps})}
    run = httpx2.post(f"{cluster.url}/v1/runs", json=body, headers=AUTH)
    assert run.status_code == 201, run.text
    return str(run.json()["id"])


def watch(cluster: Cluster, run_id: str, last_event_id: str | None = None, stop_after: int | None = None) -> list[Frame]:
    """Over a connection of its own, which the kernel gives to any of the API processes."""
    headers = AUTH | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    frames: list[Frame] = []
    with httpx2.stream("GET", f"{cluster.url}/v1/runs/{run_id}/events/stream", headers=headers, timeout=30) as response:
        assert response.status_code == 200
        for frame in parse(response.iter_lines()):
            frames.append(frame)
            if stop_after is not None and sum(map(is_delta, frames)) >= stop_after:
                break
    return frames


def text(frames: list[Frame]) -> str:
    return "".join(frame.data["delta"]["content"]["text"] for frame in frames if is_delta(frame))


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_previews_go_on_at_any_api_process(joined: Cluster) -> None:
    joined.start()
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


def test_without_a_bus_viewers_follow_the_log(tmp_path: Path) -> None:
    with Cluster(tmp_path, postgres=POSTGRES, apis=1, workers=1) as cluster:
        cluster.start()
        cluster.ready()
        frames = watch(cluster, start(cluster, {"text": "the tale"}))
    assert not any(map(is_delta, frames))
    assert [frame.event for frame in frames][-2:] == ["run.completed", "done"]


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_each_process_waits_for_what_it_needs_and_says_so(tmp_path: Path) -> None:
    with Cluster(tmp_path, postgres=POSTGRES, redis=True, apis=1, workers=1) as cluster:
        # A Temporal that nobody has prepared: the worker registers the search attributes.
        temporal = cluster.processes["temporal"]
        temporal.argv = [part for part in temporal.argv if part != "--search-attribute" and "=Keyword" not in part]
        cluster.start("api1", "worker1")
        cluster.wait_for(lambda: "waiting for Temporal" in cluster.processes["worker1"].output, 30, "the worker says nothing")
        # The API needs only its database: what it accepts now happens later.
        cluster.wait_for(lambda: httpx2_ok(f"{cluster.url}/livez"), 30, "the API does not serve")
        assert httpx2.get(f"{cluster.url}/readyz").status_code == 503
        run_id = start(cluster, {"text": "at last"})
        cluster.start("temporal")
        frames = watch(cluster, run_id)
        cluster.start("redis")
        assert frames[-1].data["status"] == "completed"
        cluster.ready()


@pytest.mark.skipif(not POSTGRES, reason="SQLite is never away")
def test_api_and_worker_wait_for_the_database(tmp_path: Path) -> None:
    nowhere = {"PERDURE_DATABASE_URL": "postgresql+psycopg://nobody:secret@127.0.0.1:1/none"}
    with Cluster(tmp_path, apis=1, workers=1, environment=nowhere) as cluster:
        cluster.start("api1", "worker1")
        for name in ("api1", "worker1"):
            process = cluster.processes[name]
            cluster.wait_for(lambda: "waiting for the database" in process.output, 30, f"{name} says nothing")  # noqa: B023
            assert process.alive
            assert "secret" not in process.output


def httpx2_ok(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).is_success
    except httpx2.HTTPError:
        return False


def test_a_queue_of_its_own_is_served_by_who_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text('[providers.apart]\nkind = "scripted"\nqueue = "model.apart"\n')
    with Cluster(tmp_path, postgres=POSTGRES, apis=1, workers=2) as cluster:
        for name, queues in (("worker1", "perdure=50"), ("worker2", "model.apart=2")):
            program = cluster.processes[name]
            program.argv = [part.replace("worker(None)", f"worker({queues!r})") for part in program.argv]
        cluster.start("temporal", "api1", "worker1")
        cluster.ready()
        run_id = start(cluster, {"text": "from apart"}, model="apart:script")
        time.sleep(1)
        assert httpx2.get(f"{cluster.url}/v1/runs/{run_id}", headers=AUTH).json()["started_at"] is None
        cluster.start("worker2")
        assert watch(cluster, run_id)[-1].data["status"] == "completed"
