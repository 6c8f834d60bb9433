"""Tokens for browsers: one session, an hour, and nothing that was not opened to them."""

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from activities.tidy import KEEP_TOKENS, Tidy
from api.client_access import OPEN
from domain.clock import now
from domain.sessions import Keep
from storage.tables import ClientTokenRow
from tests.contract.samples import body_for, fill, operations, refused
from tests.service import Frame, ServiceThread, Workspace, is_delta, parse

HELLO = {"text": "Hello."}
SLOW = {"text": "slow ", "words": 250, "delay_ms": 20}
ASKING = {"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}


def new_session(workspace: Workspace, **agent: Any) -> str:
    return workspace.post("/v1/sessions", {"agent": workspace.agent(**agent)["id"]}, expect=201)["id"]


def say(workspace: Workspace, session_id: str, *steps: dict[str, Any]) -> str:
    """The id of the run that answers from that script."""
    body = {"content": json.dumps({"script": steps})}
    return workspace.post(f"/v1/sessions/{session_id}/messages", body, expect=201)["run"]["id"]


def mint(workspace: Workspace, session_id: str, *grants: str) -> dict[str, Any]:
    return workspace.post(f"/v1/sessions/{session_id}/client_tokens", {"grants": grants}, expect=201)


def expires_in(service: ServiceThread, token_id: str, seconds: float) -> None:
    async def change() -> None:
        statement = update(ClientTokenRow).where(col(ClientTokenRow.id) == token_id)
        async with service.parts.database.write() as transaction:
            await transaction.connection.execute(statement.values(expires_at=now() + timedelta(seconds=seconds)))

    service.call(change())


@pytest.fixture
def session(workspace: Workspace) -> str:
    return new_session(workspace, system="A secret.", tools=[ASKING])


@pytest.fixture
def page(workspace: Workspace, session: str) -> Iterator[Workspace]:
    """The session as its page sees it."""
    with Workspace(workspace.service, mint(workspace, session)["token"]) as page:
        yield page


def test_a_page_converses_and_stops(workspace: Workspace, session: str, page: Workspace) -> None:
    token = mint(workspace, session)
    lasts = datetime.fromisoformat(token["expires_at"]) - datetime.fromisoformat(token["created_at"])
    assert (token["token"][:4], lasts) == ("pct_", timedelta(minutes=60))

    stream = page.stream(f"/v1/runs/{say(page, session, HELLO)}/events/stream")
    assert [frame.data["content"][0]["text"] for frame in stream if frame.event == "agent.message"] == ["Hello."]
    assert len(page.get(f"/v1/sessions/{session}/items")["data"]) == 2

    slow = say(page, session, SLOW)
    page.stream(f"/v1/runs/{slow}/events/stream", until=is_delta)
    page.post(f"/v1/runs/{slow}/cancel", expect=202)
    assert page.get(f"/v1/runs/{slow}/wait")["status"] == "cancelled"


def test_a_page_does_not_see_what_the_agent_is_made_of(workspace: Workspace, session: str, page: Workspace) -> None:
    run = say(page, session, HELLO)
    assert "temporal.internal" in workspace.get(f"/v1/runs/{run}")["links"]["temporal"]
    thread = page.get(f"/v1/sessions/{session}/threads")["data"][0]["id"]
    for path in (f"sessions/{session}", f"sessions/{session}/threads", f"sessions/{session}/threads/{thread}"):
        assert "A secret." in workspace.http.get(f"/v1/{path}").text
        assert not {"A secret.", "always_ask"} & set(page.http.get(f"/v1/{path}").text.split('"'))
    for path in (f"/v1/runs/{run}", f"/v1/runs/{run}/wait"):
        assert "temporal.internal" not in page.http.get(path).text
    say(page, session, SLOW)
    busy = page.http.post(f"/v1/sessions/{session}/messages", json={"content": "x", "on_busy": "reject"})
    assert (busy.status_code, busy.json()["run"]["links"]["temporal"]) == (409, None)


def test_every_other_session_is_closed_and_every_operation_that_was_not_opened(
    workspace: Workspace, session: str, page: Workspace
) -> None:
    """Over the whole OpenAPI document, with ids that exist: operations added later are closed until somebody opens them."""
    other = workspace.start({"tools": [{"name": "write", "input": {"file_path": "a", "content": "x"}}]}, tools=[ASKING])
    row = other.until(lambda row: row["waiting_for"] == "approval")
    ids = {"run_id": other.id, "session_id": row["session_id"], "agent_id": row["agent"]["id"]}
    ids["thread_id"] = workspace.get(f"/v1/sessions/{row['session_id']}/threads")["data"][0]["id"]
    ids["key_id"] = workspace.get("/v1/api_keys")["data"][0]["id"]
    ids["approval_id"] = workspace.get("/v1/approvals", run_id=other.id)["data"][0]["id"]
    ids["file_id"] = workspace.http.post("/v1/files", files={"file": ("a", b"x")}).json()["id"]
    published = {"tools": [{"name": "publish_artifact", "input": {"path": "a"}}]}
    resources = [{"type": "file", "file_id": ids["file_id"], "mount_path": "a"}]
    run = workspace.start(published, {"text": "ok"}, tools=["publish_artifact"], resources=resources).wait()
    ids["artifact_id"] = workspace.get(f"/v1/sessions/{run['session_id']}/artifacts")["data"][0]["id"]

    asked = operations(workspace)
    with Workspace(workspace.service, mint(workspace, session, "approvals", "tool_results")["token"]) as granted:
        for caller in (page, granted):
            for method, path in asked:
                response = caller.http.request(method, fill(path, ids), json=body_for(method, path))
                if f"{method} {path}" in OPEN:
                    refused(response, 404, "not_found")
                else:
                    refused(response, 403, "forbidden")
    for method, path in asked:
        if "{session_id}" in path and f"{method} {path}" not in OPEN:
            refused(page.http.request(method, fill(path, {"session_id": session}), json={}), 403, "forbidden")
    assert sum(f"{method} {path}" in OPEN for method, path in asked) >= 20


def test_what_is_asked_of_the_operator_needs_a_grant(workspace: Workspace) -> None:
    tool = {"type": "custom", "name": "pay", "description": "Pays.", "input_schema": {"type": "object"}}
    session = new_session(workspace, tools=[ASKING, tool])
    write = {"name": "write", "input": {"file_path": "a", "content": "x"}}
    run = say(workspace, session, {"tools": [write]}, {"tools": [{"name": "pay", "input": {}}]}, {"text": "Done."})
    path = f"/v1/sessions/{session}/events"

    def waits(kind: str) -> str:
        for _ in range(500):
            if workspace.get(f"/v1/runs/{run}")["waiting_for"] == kind:
                return workspace.get(path, limit=1000, types=["agent.tool_use", "agent.custom_tool_use"])["data"][-1]["id"]
            time.sleep(0.02)
        raise AssertionError(f"the run never waited for {kind}")

    with (
        Workspace(workspace.service, mint(workspace, session)["token"]) as plain,
        Workspace(workspace.service, mint(workspace, session, "approvals", "tool_results")["token"]) as granted,
    ):
        approval = waits("approval")
        allow = {"events": [{"type": "user.tool_confirmation", "tool_use_id": approval, "result": "allow"}]}
        refused(plain.http.post(path, json=allow), 403, "forbidden")
        granted.post(path, allow, expect=200)
        answer: dict[str, Any] = {"custom_tool_use_id": waits("tool_result"), "content": []}
        result = {"events": [{"type": "user.custom_tool_result", **answer}]}
        refused(plain.http.post(path, json=result), 403, "forbidden")
        granted.post(path, result, expect=200)
        assert plain.get(f"/v1/runs/{run}/wait")["status"] == "completed"


def test_an_address_takes_client_tokens_only_and_no_log_has_them(
    workspace: Workspace, session: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run = say(workspace, session, HELLO)
    token = mint(workspace, session)["token"]
    stream, plain = f"{workspace.service.url}/v1/runs/{run}/events/stream", f"{workspace.service.url}/v1/runs/{run}"

    assert "event: done" in httpx2.get(stream, params={"access_token": token}).text
    caplog.clear()  # of what our own client says
    for address, secret in ((stream, workspace.key), (plain, workspace.key), (plain, token)):
        problem = refused(httpx2.get(address, params={"access_token": secret}), 401, "unauthenticated")
        assert "must not stand in an address" in problem["detail"]
    for wrong in ("pct_wrong", "pct_" + "x" * 5000, ""):
        refused(httpx2.get(stream, params={"access_token": wrong}), 401, "unauthenticated")
    refused(httpx2.get(stream, params={"access_token": token + "x"}), 401, "unauthenticated")
    # The access log is off, but pytest puts a handler of its own there; tests/browser looks at what a process writes.
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "uvicorn.access"))]
    assert not any(token in record.getMessage() or workspace.key in record.getMessage() for record in ours)


def test_a_stream_ends_with_its_token_and_a_new_one_takes_it_up_inside_the_text(workspace: Workspace, session: str) -> None:
    token = mint(workspace, session)
    expires_in(workspace.service, token["id"], 1.5)
    run = say(workspace, session, SLOW)
    url = f"{workspace.service.url}/v1/sessions/{session}/events/stream"

    began = time.monotonic()
    first = httpx2.get(url, params={"access_token": token["token"], "after": 0}, timeout=20)
    assert time.monotonic() - began < 5
    assert first.text.endswith(": the key or token is no longer good\nretry: 500\n\n")
    frames = list(parse(first.text.splitlines()))
    assert is_delta(frames[-1]), "it ended inside the text"
    refused(httpx2.get(url, params={"access_token": token["token"]}), 401, "token_expired")

    fresh = mint(workspace, session)["token"]
    params = {"access_token": fresh, "after": frames[-1].id}
    with httpx2.stream("GET", url, params=params, timeout=20) as response:
        for frame in parse(response.iter_lines()):
            frames.append(frame)
            if frame.event == "session.status_idle":
                break

    final = next(frame.data["content"][0]["text"] for frame in frames if frame.event == "agent.message")
    joined = "".join(frame.data["delta"]["content"]["text"] for frame in frames if is_delta(frame))
    assert final.startswith(joined)  # the last piece may be missing, where the final event was faster
    assert len(joined) > 0.8 * len(final)
    assert seqs(frames) == list(range(1, len(seqs(frames)) + 1))
    assert workspace.get(f"/v1/runs/{run}")["status"] == "completed"


def seqs(frames: list[Frame]) -> list[int]:
    return [frame.data["seq"] for frame in frames if "seq" in frame.data]


def test_a_token_ends_with_its_key_and_with_its_session(workspace: Workspace) -> None:
    def is_good(token: str) -> bool:
        session = (ids := workspace.get("/v1/sessions")["data"]) and ids[0]["id"]
        response = httpx2.get(f"{workspace.service.url}/v1/sessions/{session}", headers={"x-api-key": token})
        assert response.status_code in (200, 401), response.text
        return response.status_code == 200

    session = new_session(workspace)
    made = workspace.post("/v1/api_keys", {"name": "page"})
    with Workspace(workspace.service, made["key"]) as backend:
        token = mint(backend, session)["token"]
    assert is_good(token)
    workspace.http.delete(f"/v1/api_keys/{made['id']}")
    assert not is_good(token)

    token = mint(workspace, session)["token"]
    assert is_good(token)
    workspace.post(f"/v1/sessions/{session}/archive")
    assert httpx2.get(f"{workspace.service.url}/v1/sessions/{session}", headers={"x-api-key": token}).status_code == 401
    workspace.post(f"/v1/sessions/{session}/client_tokens", expect=409)

    other = new_session(workspace)
    token = mint(workspace, other)["token"]
    assert is_good(token)
    assert workspace.http.delete(f"/v1/sessions/{other}").status_code == 200
    assert httpx2.get(f"{workspace.service.url}/v1/sessions/{other}", headers={"x-api-key": token}).status_code == 401


def test_open_streams_end_with_the_key(workspace: Workspace, session: str) -> None:
    """That of the page, whose token the key made, and the key's own; not those of another key."""
    made = workspace.post("/v1/api_keys", {"name": "page"})
    url, other = f"{workspace.service.url}/v1/sessions/{session}/events/stream", mint(workspace, session)["token"]
    with Workspace(workspace.service, made["key"]) as backend:
        tokens = (mint(backend, session)["token"], made["key"], other)
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        opened = [stack.enter_context(httpx2.stream("GET", url, headers={"x-api-key": token}, timeout=20)) for token in tokens]
        (page, own, others) = [response.iter_lines() for response in opened]
        assert [next(lines) for lines in (page, own, others)] == ["retry: 2000"] * 3
        reading = [pool.submit(list[str], lines) for lines in (page, own)]
        workspace.http.delete(f"/v1/api_keys/{made['id']}")
        for ended in reading:
            assert ended.result(8)[-3:] == [": the key or token is no longer good", "retry: 500", ""]
        say(workspace, session, HELLO)
        assert next(line for line in others if line.startswith("event:")) == "event: user.message"


def test_an_open_stream_ends_when_its_session_is_archived(workspace: Workspace, session: str) -> None:
    url, token = f"{workspace.service.url}/v1/sessions/{session}/events/stream", mint(workspace, session)["token"]
    with httpx2.stream("GET", url, headers={"x-api-key": token}, timeout=8) as response:
        lines = response.iter_lines()
        next(lines)
        workspace.post(f"/v1/sessions/{session}/archive")
        assert list(lines)[-1] == ""


def test_a_token_may_do_no_more_than_its_key(workspace: Workspace, session: str) -> None:
    service = workspace.service
    narrow = workspace.post("/v1/api_keys", {"name": "n", "scopes": ["sessions:read", "sessions:write"]})["key"]
    run = say(workspace, session, HELLO)
    with Workspace(service, narrow) as backend, Workspace(service, mint(backend, session)["token"]) as page:
        page.get(f"/v1/sessions/{session}")
        page.get(f"/v1/runs/{run}", expect=403)
    reader = workspace.post("/v1/api_keys", {"name": "r", "scopes": ["sessions:read"]})["key"]
    with Workspace(service, reader) as backend:
        backend.post(f"/v1/sessions/{session}/client_tokens", expect=403)


def test_a_token_is_made_once_under_an_idempotency_key_and_shown_once(workspace: Workspace, session: str) -> None:
    path, headers = f"/v1/sessions/{session}/client_tokens", {"Idempotency-Key": "one"}

    first, again = (workspace.http.post(path, headers=headers).json() for _ in range(2))

    assert first["token"].startswith("pct_")
    assert again == {**first, "token": None}


def test_expired_tokens_are_removed(workspace: Workspace, session: str) -> None:
    service = workspace.service
    old, late, good = (mint(workspace, session)["id"] for _ in range(3))
    expires_in(service, old, -(KEEP_TOKENS.total_seconds() + 1))
    expires_in(service, late, -1)

    assert service.call(Tidy(service.parts.database, service.parts.files, timedelta(days=30), Keep()).run(60))

    async def count(token_id: str) -> int:
        statement = select(func.count()).where(col(ClientTokenRow.id) == token_id)
        async with service.parts.database.read() as connection:
            return (await connection.execute(statement)).scalar_one()

    assert [service.call(count(token_id)) for token_id in (old, late, good)] == [0, 1, 1]
