"""Sending the same thing twice does it once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.service import Workspace


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid4().hex}


def test_the_same_key_and_body_get_the_first_answer(workspace: Workspace) -> None:
    agent, headers = workspace.agent(model="demo:echo")["id"], key()
    body = {"agent": agent, "input": "once"}

    first = workspace.http.post("/v1/runs", json=body, headers=headers)
    workspace.get(f"/v1/runs/{first.json()['id']}/wait", timeout_seconds=30)
    again = workspace.http.post("/v1/runs", json=body, headers=headers)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content  # as it was then, though the run is over now
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    for name in ("location", "content-location", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["request-id"] != first.headers["request-id"]
    assert len(workspace.get("/v1/runs")["data"]) == 1


def test_another_body_under_the_key_is_refused(workspace: Workspace) -> None:
    headers = key()
    workspace.post("/v1/agents", {"name": "a", "model": "demo:echo"}, headers=headers)

    refused = workspace.post("/v1/agents", {"name": "b", "model": "demo:echo"}, headers=headers, expect=422)

    assert refused["code"] == "idempotency_key_reused"
    assert [agent["name"] for agent in workspace.get("/v1/agents")["data"]] == ["a"]


def test_a_key_counts_for_one_route_and_one_workspace(workspace: Workspace) -> None:
    headers, body = key(), {"name": "a", "model": "demo:echo"}
    agent = workspace.post("/v1/agents", body, headers=headers)
    other_route = workspace.post("/v1/sessions", {"agent": agent["id"]}, headers=headers)
    other_path = workspace.post(f"/v1/sessions/{other_route['id']}/archive", headers=headers)
    with workspace.service.workspace() as other:
        theirs = other.post("/v1/agents", body, headers=headers)

    assert other_path["id"] == other_route["id"]
    assert theirs["id"] != agent["id"]


def test_a_refused_request_leaves_its_key_free(workspace: Workspace) -> None:
    headers = key()
    body = {"agent": "nobody", "input": "x"}
    workspace.post("/v1/runs", body, headers=headers, expect=404)
    workspace.agent(name="nobody", model="demo:echo")

    accepted = workspace.http.post("/v1/runs", json=body, headers=headers)

    assert accepted.status_code == 201
    assert "idempotent-replayed" not in accepted.headers


@pytest.mark.parametrize("bad", ["", "k" * 256])
def test_a_key_that_cannot_be_kept_is_refused(workspace: Workspace, bad: str) -> None:
    refused = workspace.post("/v1/agents", {"name": "a", "model": "demo:echo"}, headers={"Idempotency-Key": bad}, expect=400)

    assert refused["code"] == "bad_request"
    assert workspace.get("/v1/agents")["data"] == []


def test_two_hundred_at_once_start_one_run(workspace: Workspace, record_property: Callable[[str, object], None]) -> None:
    """Those that come while the first is at work are told so; none starts a second."""
    body, headers = {"agent": workspace.agent(model="demo:echo")["id"], "input": "x"}, key()

    record_property("looked_at", 200)

    answers = workspace.post_at_once("/v1/runs", [body] * 200, headers=headers)

    made = [answer for answer in answers if answer.status_code == 201]
    refused = [answer.json() for answer in answers if answer.status_code != 201]
    assert {problem["code"] for problem in refused} <= {"idempotency_in_flight"}
    assert all(problem["status"] == 409 and problem["retryable"] for problem in refused)
    assert len({answer.json()["id"] for answer in made}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in made) == 1
    assert len(workspace.get("/v1/runs")["data"]) == 1
    replayed = workspace.http.post("/v1/runs", json=body, headers=headers)
    assert replayed.json()["id"] == made[0].json()["id"]


def test_a_new_api_key_is_not_kept_for_replays(workspace: Workspace) -> None:
    headers, body = key(), {"name": "ci", "scopes": ["runs:read"]}
    first = workspace.post("/v1/api_keys", body, headers=headers)

    again = workspace.post("/v1/api_keys", body, headers=headers)

    assert first["key"].startswith("pdr_")
    assert again == {**first, "key": None}


def send_as_event(workspace: Workspace, session: str, text: str, client_event_id: str) -> dict[str, Any]:
    event = {"type": "user.message", "content": [{"type": "text", "text": text}], "client_event_id": client_event_id}
    return workspace.post(f"/v1/sessions/{session}/events", {"events": [event]})["data"][0]


def send_as_message(workspace: Workspace, session: str, text: str, client_event_id: str) -> dict[str, Any]:
    body = {"content": text, "client_event_id": client_event_id}
    return workspace.post(f"/v1/sessions/{session}/messages", body)["event"]


@pytest.mark.parametrize("first", [send_as_event, send_as_message])
@pytest.mark.parametrize("second", [send_as_event, send_as_message])
def test_a_client_event_id_sent_twice_is_one_event(workspace: Workspace, first: Any, second: Any) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    other = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]

    stored = first(workspace, session, "hello", "mine-1")
    again = second(workspace, session, "hello", "mine-1")

    assert again["id"] == stored["id"]
    assert again["client_event_id"] == "mine-1"
    assert first(workspace, other, "hello", "mine-1")["id"] != stored["id"]
    assert len(workspace.get("/v1/runs", session_id=session)["data"]) == 1


def test_a_client_event_id_at_once_is_one_event(workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]

    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(send_as_message, workspace, session, "hello", "mine") for _ in range(20)]
        sent = [request.result() for request in asked]

    assert len({event["id"] for event in sent}) == 1
    assert len(workspace.get("/v1/runs", session_id=session)["data"]) == 1


def test_events_under_an_idempotency_key_are_sent_once(workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    events = [{"type": "user.message", "content": [{"type": "text", "text": text}]} for text in ("one", "two")]
    headers = key()

    def send() -> httpx2.Response:
        return workspace.http.post(f"/v1/sessions/{session}/events", json={"events": events}, headers=headers)

    first, again = send(), send()

    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    messages = workspace.get(f"/v1/sessions/{session}/events", types="user.message")["data"]
    assert [message["content"][0]["text"] for message in messages] == ["one", "two"]
