"""Streams over HTTP: replay, resume, filters, and viewers that come, go and dawdle."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from api import sse
from domain.sdk_events import SDK_TYPES
from tests.service import Frame, RunView, Workspace, is_delta, parse
from tests.test_subagents import delegate, team

STREAMED_ONLY = ("event_start", "event_delta", "done")
FULL = (
    {"thinking": "Now. ", "text": "Writing.", "tools": [{"name": "write", "input": {"file_path": "a", "content": "x"}}]},
    {"text": "It is written.", "words": 10},
)
SLOW = {"thinking": "Slowly, slowly. ", "text": "slow ", "words": 60, "delay_ms": 15}
SDK = {"anthropic-beta": "managed-agents-2026-04-01"}


def durable(frames: list[Frame]) -> list[dict[str, Any]]:
    return timeless([frame.data for frame in frames if frame.event not in STREAMED_ONLY])


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the one member that changes: a message is streamed as queued, and replayed as taken up."""
    return [{name: value for name, value in event.items() if name != "processed_at"} for event in events]


def texts(frames: list[Frame]) -> dict[str, str]:
    """By event: the joined pieces."""
    joined: dict[str, str] = {}
    for frame in frames:
        if is_delta(frame):
            content = frame.data["delta"]["content"]
            joined[frame.data["event_id"]] = joined.get(frame.data["event_id"], "") + content[content["type"]]
    return joined


def text_of(event: dict[str, Any]) -> str:
    return event["text"] if event["type"] == "agent.thinking" else event["content"][0]["text"]


def session_path(run: RunView) -> str:
    return f"/v1/sessions/{run.row['session_id']}/events/stream"


def is_message(frame: Frame) -> bool:
    return frame.event == "agent.message"


def is_rescheduled(frame: Frame) -> bool:
    return frame.event == "session.status_rescheduled"


def nth(number: int, wanted: Callable[[Frame], bool]) -> Callable[[Frame], bool]:
    seen: list[Frame] = []

    def reached(frame: Frame) -> bool:
        if wanted(frame):
            seen.append(frame)
        return len(seen) == number

    return reached


def test_replay_is_what_was_live_and_resumes_behind_every_event(workspace: Workspace) -> None:
    run = workspace.start(*FULL, tools=["write"])
    live = run.stream()
    assert live[-1].event == "done"
    assert live[-1].data == {"type": "done", "run_id": run.id, "status": "completed"}
    story = durable(live)

    assert durable(run.stream()) == story == timeless(run.events())[: len(story)]
    assert run.stream(last_event_id="0")[0].event == "user.message"
    for position, event in enumerate(story):
        again = run.stream(last_event_id=str(event["seq"]))
        assert durable(again) == story[position + 1 :]
        assert again[-1].event == "done", "also for whoever lost the connection just before it"


def test_a_viewer_that_comes_back_inside_a_text_gets_the_rest(workspace: Workspace) -> None:
    run = workspace.start(SLOW)
    frames: list[Frame] = []
    for _ in range(4):
        last = frames[-1].id if frames else None
        frames += run.stream(last_event_id=last, until=nth(7, is_delta))
    frames += run.stream(last_event_id=frames[-1].id)

    story = durable(frames)
    assert [event["seq"] for event in story] == list(range(1, len(story) + 1))
    opened = [frame.data["event"]["id"] for frame in frames if frame.event == "event_start"]
    finals = {event["id"]: text_of(event) for event in story if event["type"] in ("agent.thinking", "agent.message")}
    assert sorted(opened) == sorted(finals)
    joined = texts(frames)
    # The last piece may be missing, where the final event was faster.
    assert all(final.startswith(joined[event_id]) for event_id, final in finals.items())
    assert len("".join(joined.values())) > 0.8 * len("".join(finals.values()))


def test_a_viewer_that_joins_in_the_middle_of_a_text_gets_it_whole(workspace: Workspace) -> None:
    run = workspace.start(SLOW)
    run.stream(until=nth(20, is_delta))

    late = workspace.stream(session_path(run), until=is_message)

    message = late[-1].data
    assert durable(late)[0]["seq"] > 5, "live only: nothing is replayed"
    assert texts(late)[message["id"]] == text_of(message)


def two_at_once(workspace: Workspace) -> str:
    """Where to follow a session in which the second sub-agent begins and ends in the middle of the first one's text."""
    slow, quick = {"text": "slowly ", "words": 60, "delay_ms": 30}, {"first_token_ms": 700, "text": "quick"}
    asked = [delegate("one", slow), delegate("two", quick)]
    return session_path(workspace.start({"tools": asked}, {"text": "End."}, agent=team(workspace, "one", "two")))


def is_whole(frames: list[Frame]) -> None:
    """Every text was opened once at most, and its pieces are its beginning."""
    opened = [frame.data["event"]["id"] for frame in frames if frame.event == "event_start"]
    finals = {frame.data["id"]: text_of(frame.data) for frame in frames if is_message(frame)}
    assert len(finals) == 3
    assert len(opened) == len(set(opened))
    assert all(finals[event_id].startswith(joined) for event_id, joined in texts(frames).items())


def test_the_end_of_another_sub_agents_call_does_not_begin_a_text_again(workspace: Workspace) -> None:
    is_whole(workspace.stream(two_at_once(workspace), until=lambda frame: frame.event == "session.status_idle", after=0))


def test_nor_for_a_viewer_that_was_away_when_it_ended(workspace: Workspace) -> None:
    path = two_at_once(workspace)
    frames = workspace.stream(path, until=is_delta, after=0)
    workspace.stream(path, until=is_message, after=0)
    is_whole(frames + workspace.stream(path, until=lambda f: f.event == "session.status_idle", last_event_id=frames[-1].id))


def test_twenty_viewers_are_told_the_same(workspace: Workspace) -> None:
    run = workspace.start({"first_token_ms": 2500, **SLOW}, {"text": "unused"})
    with ThreadPoolExecutor(20) as pool:
        stories = [watching.result() for watching in [pool.submit(run.stream) for _ in range(20)]]
    assert len({json.dumps([f.id for f in story if not f.id.count(".")]) for story in stories}) == 1
    assert len({json.dumps(durable(story)) for story in stories}) == 1
    assert len({json.dumps(texts(story)) for story in stories}) == 1
    assert all(story[-1].event == "done" for story in stories)


def test_a_failed_attempts_text_is_void_for_late_viewers(workspace: Workspace) -> None:
    run = workspace.start({"first_token_ms": 2000, "text": "half ", "words": 40, "delay_ms": 20, "truncate_attempts": 1})
    frames = run.stream(until=is_rescheduled)
    void = next(iter(texts(frames)))

    late = workspace.stream(session_path(run), until=is_message)

    assert void not in texts(late)
    assert late[-1].data["id"] != void


def test_a_retried_runs_stream_ends_with_the_retry(workspace: Workspace) -> None:
    run = workspace.start({"text": "back", "fail": {"code": "rejected", "message": "no", "times": 1}})
    assert run.stream()[-1].data["status"] == "failed"
    run.command("retry")

    again = run.stream()

    assert again[-1].event == "done"
    ends = [event["type"] for event in durable(again) if event["type"] in ("run.failed", "run.completed")]
    assert ends[0] == "run.failed"
    assert len(ends) == 2


def test_types_and_deltas_filter(workspace: Workspace) -> None:
    run = workspace.start(*FULL, {**SLOW, "first_token_ms": 2000}, tools=["write"])
    only = run.stream(types="agent.message", **{"event_deltas[]": "agent.message"})
    assert {frame.event for frame in only} == {"agent.message", "event_start", "event_delta", "done"}
    starts = [frame.data["event"]["type"] for frame in only if frame.event == "event_start"]
    assert set(starts) <= {"agent.message"}
    messages = [event for event in run.events() if event["type"] == "agent.message"]
    assert durable(only) == timeless(messages)
    assert durable(run.stream(types="agent.message", last_event_id=only[0].id))[-1] == timeless(messages)[-1]

    quiet = workspace.start(SLOW).stream(**{"event_deltas[]": "none"})
    assert texts(quiet) == {}


def test_the_anthropic_sdk_gets_only_types_it_knows(workspace: Workspace) -> None:
    run = workspace.start(*FULL, tools=["write"])
    run.wait()
    with workspace.http.stream("GET", session_path(run), params={"after": 0}, headers=SDK) as response:
        seen: list[str] = []
        for frame in parse(response.iter_lines()):
            seen.append(frame.event)
            if frame.event == "session.status_idle":
                break
    assert set(seen) <= SDK_TYPES
    assert "run.queued" not in seen
    assert seen.count("agent.message") == 2


def test_headers_greeting_and_heartbeat(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 1)
    run = workspace.start({"text": "x"})
    run.wait()
    with workspace.http.stream("GET", session_path(run)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.iter_lines()
        assert [next(lines) for _ in range(3)] == ["retry: 2000", ": connected", ""]
        assert next(lines) == ": hb"


def test_closing_a_stream_never_stops_a_run(workspace: Workspace) -> None:
    run = workspace.start(SLOW)
    for _ in range(3):
        run.stream(until=is_delta)
    assert run.wait()["status"] == "completed"


def test_a_viewer_that_does_not_read_for_a_while_misses_nothing(workspace: Workspace) -> None:
    """Many more frames than its queue and the network's buffers hold."""
    run = workspace.start({"first_token_ms": 300, "text": "much ", "words": 8000, "chunk_chars": 4}, {"text": "unused"})
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", workspace.service.settings.port))
        connection.settimeout(30)
        path = f"/v1/runs/{run.id}/events/stream"
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {workspace.key}\r\n\r\n".encode())
        assert run.wait(60)["status"] == "completed"
        received = bytearray()
        while piece := connection.recv(65536):
            received += piece
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert b" 200 " in head
    frames = list(parse(body.decode().split("\n")))

    assert frames[-1].event == "done"
    story = durable(frames)
    assert story == timeless(run.events())[: len(story)]
    message = next(event for event in story if event["type"] == "agent.message")
    assert text_of(message).startswith(texts(frames)[message["id"]])


@pytest.mark.parametrize("cursor", ["x", "-1", "99999", "1.sevt_x.3", "1.2", "1.", "1\u0663"])
def test_a_cursor_that_is_none_is_refused(workspace: Workspace, cursor: str) -> None:
    run = workspace.start({"text": "x"})
    run.wait()
    for path in (session_path(run), f"/v1/runs/{run.id}/events/stream"):
        response = workspace.http.get(path, headers={b"Last-Event-ID": cursor.encode()})
        assert response.status_code == 400, cursor
        assert response.json()["code"] == "malformed_cursor"
        assert workspace.http.get(path, params={"after": 99999}).status_code == 400


def test_another_workspaces_streams_are_not_found(workspace: Workspace) -> None:
    run = workspace.start({"text": "x"})
    paths = (session_path(run), f"/v1/runs/{run.id}/events/stream", f"/v1/runs/{run.id}/wait")
    with workspace.service.workspace() as stranger:
        assert [stranger.http.get(path).status_code for path in paths] == [404, 404, 404]
    assert [httpx2.get(workspace.service.url + path).status_code for path in paths] == [401, 401, 401]
