import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from commands import connection as connection_module
from commands.client import Raw, connect
from commands.connection import Connection, Unreachable
from commands.context import Failed
from tests.commands.loopback import Answer, frame, loopback, stream


def test_a_stream_that_breaks_off_goes_on_behind_its_last_frame() -> None:
    torn = 'id: 3\nevent: agent.message\ndata: {"se'
    with loopback(
        stream(frame("1", "run.queued", "{}"), frame("1.sevt_a.4", "event_delta", '{"x":1}'), cut=True, tail=torn),
        stream(frame("3", "agent.message", '{"seq":3}'), tail=torn),  # an end without `done` is a break too
        Answer("busy", status=503),
        stream(frame("4", "run.completed", "{}"), frame("4", "done", "{}"), frame("5", "never", "{}")),
    ) as service:
        breaks: list[str] = []
        with closing(Connection(service.url, "pdr_x")) as connection:
            frames = list(connection.stream("/s", breaks.append, after=0))

    assert [(f.id, f.event) for f in frames] == [
        ("1", "run.queued"),
        ("1.sevt_a.4", "event_delta"),
        ("3", "agent.message"),
        ("4", "run.completed"),
        ("4", "done"),
    ]
    assert [asked.headers.get("last-event-id") for asked in service.asked] == [None, "1.sevt_a.4", "3", "3"]
    assert {asked.path for asked in service.asked} == {"/s?after=0"}
    assert {asked.headers["authorization"] for asked in service.asked} == {"Bearer pdr_x"}
    assert len(breaks) == 2, "each break is told once, however often the stream is tried again"


def test_a_stream_that_was_silent_for_long_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a person for an hour sends nothing but heartbeats, and then the service is restarted."""
    monkeypatch.setattr(connection_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(connection_module, "LONGEST_WAIT_SECONDS", 0.3)
    silent = Answer("retry: 2000\n: connected\n\n: hb\n\n", type="text/event-stream", cut=True, pause=0.6)
    with (
        loopback(silent, Answer("", status=0), stream(frame("1", "done", "{}"))) as service,
        closing(Connection(service.url, None)) as connection,
    ):
        assert [f.event for f in connection.stream("/s", lambda why: None)] == ["done"]


def test_a_stream_that_cannot_be_taken_up_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PATIENCE_SECONDS", 0.3)
    with loopback(*[Answer("", status=0)] * 20) as service, closing(Connection(service.url, None)) as connection:
        with pytest.raises(Unreachable):
            list(connection.stream("/s", lambda why: None))
        assert len(service.asked) < 5


def test_a_refusal_ends_a_stream() -> None:
    gone = '{"title": "Not found", "status": 404, "detail": "No run run_x.", "code": "not_found"}'
    with (
        loopback(stream(frame("1", "run.queued", "{}"), cut=True), Answer(gone, status=404)) as service,
        closing(Connection(service.url, None)) as connection,
    ):
        frames = connection.stream("/s", lambda why: None)
        assert next(frames).id == "1"
        with pytest.raises(Failed, match="Not found: No run run_x") as failed:
            next(frames)
    assert failed.value.code == "not_found"


def test_a_post_is_sent_again_with_its_key_when_the_connection_breaks() -> None:
    in_flight = '{"title": "Still running", "code": "idempotency_in_flight"}'
    with (
        loopback(Answer("", status=0), Answer(in_flight, status=409), Answer('{"id": "run_1"}')) as service,
        closing(Connection(service.url, None)) as connection,
    ):
        connection.post("/v1/runs", Raw, {"input": "hello"})

    assert len({asked.headers["idempotency-key"] for asked in service.asked}) == 1
    assert [json.loads(asked.body) for asked in service.asked] == [{"input": "hello"}] * 3


def test_faults_are_told_where_they_are() -> None:
    faults = [{"pointer": "/limits/max_steps", "detail": "must be 1 or more"}]
    problem = json.dumps({"title": "Invalid request", "detail": "It cannot be used.", "errors": faults})
    with (
        loopback(Answer(problem, status=422), Answer("<h1>Bad gateway</h1>", status=502, type="text/html")) as service,
        closing(Connection(service.url, None)) as connection,
    ):
        with pytest.raises(Failed, match=r"Invalid request: It cannot be used\.\n  /limits/max_steps: must be 1 or more"):
            connection.get("/v1/runs", Raw)
        with pytest.raises(Failed, match=r"answered 502: <h1>Bad gateway"):
            connection.get("/v1/runs", Raw)


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: whoever connects is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        told = rf"No Perdure answers at {url} .*make run"
        with closing(Connection(url, None)) as connection, pytest.raises(Failed, match=told):
            connection.get("/v1/runs", Raw)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "nonsense", "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Failed, match="PERDURE_URL"):
        Connection(url, None)


def test_the_profile_is_the_default_and_its_key_stays_with_its_service(tmp_path: Path) -> None:
    with loopback(Answer("{}"), Answer("{}"), Answer("{}")) as own, loopback(Answer("{}")) as other:
        (tmp_path / "profile.json").write_text(json.dumps({"url": own.url, "api_key": "pdr_profile"}))

        for url, key in ((None, None), (own.url + "/", None), (None, "pdr_given"), (other.url, None)):
            with closing(connect(url, key, tmp_path).connection) as connection:
                connection.get("/", Raw)

    assert [asked.headers.get("authorization") for asked in own.asked] == [
        "Bearer pdr_profile",
        "Bearer pdr_profile",
        "Bearer pdr_given",
    ]
    assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "http://x"}'])
def test_a_profile_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(Failed, match=r"profile\.json cannot be read"):
        connect(None, None, tmp_path)


@pytest.mark.parametrize("key", ["pdr_ä", "pdr_x\r\nEvil: 1", "two words"])
def test_a_key_that_is_none(tmp_path: Path, key: str) -> None:
    with pytest.raises(Failed, match="PERDURE_API_KEY"):
        connect("http://127.0.0.1:1", key, tmp_path)
