"""Bad input gets a clear answer, never a 5xx, and another workspace's things do not exist."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from settings import secret_reader
from tests.contract.samples import body_for, fill, operations, pending_approval, refused
from tests.service import TLS, RunView, Workspace


def post(workspace: Workspace, path: str, body: Any = None, **more: Any) -> httpx2.Response:
    return workspace.http.post(path, json=body, **more)


@pytest.fixture
def finished(workspace: Workspace) -> RunView:
    run = workspace.start({"text": "done"})
    run.wait()
    return run


@pytest.mark.parametrize("agent", ["nobody", "agent_00000000000000000000000000", {"id": "agent_x"}])
@pytest.mark.parametrize("path", ["/v1/runs", "/v1/sessions"])
def test_an_unknown_agent_is_not_found(workspace: Workspace, path: str, agent: Any) -> None:
    body = {"agent": agent, "input": "x"} if path == "/v1/runs" else {"agent": agent}

    refused(post(workspace, path, body), 404, "not_found")


@pytest.mark.parametrize(
    ("model", "known"),
    [("nowhere:x", "demo"), ("demo:nothing", "demo:script"), ("unnamed", "provider:name"), ("", "provider:name")],
)
def test_an_unknown_model_is_refused_with_the_known_ones(workspace: Workspace, model: str, known: str) -> None:
    agent = workspace.agent()
    inline = {"agent": {"name": "a", "model": model}, "input": "x"}
    asked = [
        post(workspace, "/v1/agents", {"name": "a", "model": model}),
        post(workspace, f"/v1/agents/{agent['id']}", {"model": model}),
        post(workspace, "/v1/runs", inline),
    ]
    for response in asked:
        problem = refused(response, 422, "invalid_request")
        assert known in problem["detail"]
        assert any("/model" in fault["pointer"] for fault in problem["errors"])


def test_an_unknown_tool_is_refused_with_the_known_ones(workspace: Workspace) -> None:
    for tools in (["teleport"], [{"type": "agent_toolset_20260401", "configs": [{"name": "teleport"}]}]):
        problem = refused(
            post(workspace, "/v1/agents", {"name": "a", "model": "demo:echo", "tools": tools}), 422, "invalid_request"
        )
        assert "write" in problem["detail"]


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"input": ""}, "/input"),
        ({"input": []}, "/input"),
        ({"input": [{"type": "text", "text": ""}]}, "/input/0/text"),
        ({"input": [{"type": "video", "text": "x"}]}, "/input/0"),
        ({"input": [{"type": "image", "text": "x"}]}, "/input/0/source"),
        ({"input": "x" * 1_000_001}, "/input"),
        ({"input": 5}, "/input"),
        ({"inptu": "x"}, "/inptu"),
        ({"limits": {"max_stepz": 3}}, "/limits/max_stepz"),
        ({"limits": {"max_steps": True}}, "/limits/max_steps"),
        ({"limits": {"max_steps": 0}}, "/limits/max_steps"),
        ({"limits": {"max_steps": 10**400}}, "/limits/max_steps"),
        ({"metadata": {"k": 1}}, "/metadata/k"),
        ({"metadata": {"a/b~c": 1}}, "/metadata/a~1b~0c"),
        ({"metadata": {str(n): "" for n in range(17)}}, "/metadata"),
        ({"agent": {"name": "a"}}, "/agent/model"),
        ({"agent": {"id": "agent_x", "version": 0}}, "/agent/version"),
        ({"agent": None}, "/agent"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_fault_is_reported_where_it_is(workspace: Workspace, members: dict[str, Any], pointer: str) -> None:
    body = {"agent": workspace.agent()["id"], "input": "x", **members}

    problem = refused(post(workspace, "/v1/runs", body), 422, "invalid_request")

    assert pointer in {fault["pointer"] for fault in problem["errors"]}, problem
    assert workspace.get("/v1/runs")["data"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe{", 400),
        (b"[" * 100_000, 400),
        (b'{"name": ' + b"1" * 5000 + b"}", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"name": "a\\u0000b", "model": "demo:echo"}', 422),
        (b'{"name": "\\ud800", "model": "demo:echo"}', 422),
        (b'{"name": "a", "model": {"id": "demo:echo", "t": NaN}}', 422),
        (b'{"name": "a", "model": {"id": "demo:echo", "t": 1e999}}', 422),
        (b'{"name": "a", "model": {"id": "demo:echo", "t": ' + b"[" * 300 + b"]" * 300 + b"}}", 422),
        ('{"name": "a\\u0000", "model": "demo:echo"}'.encode("utf-16"), 422),
    ],
    ids=lambda value: value[:20].decode(errors="replace").strip() + str(len(value)) if isinstance(value, bytes) else None,
)
def test_a_body_that_is_not_json_or_not_storable_is_refused(workspace: Workspace, body: bytes, status: int) -> None:
    response = workspace.http.post("/v1/agents", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == status, response.text
    assert response.json()["request_id"]


def test_a_form_is_told_to_be_json(workspace: Workspace) -> None:
    """What `curl -d` sends when nobody names a type."""
    problem = refused(workspace.http.post("/v1/agents", data={"name": "a"}), 422, "invalid_request")

    assert "application/json" in problem["detail"]


def test_text_about_escapes_is_text(workspace: Workspace) -> None:
    said = r"NUL is written \u0000 and half a pair \ud800 in JSON"

    assert workspace.agent(system=said)["system"] == said


def test_bodies_over_ten_megabytes_are_refused(workspace: Workspace) -> None:
    agent = workspace.agent()["id"]
    blocks = [{"type": "text", "text": "x" * 999_999} for _ in range(11)]
    refused(post(workspace, "/v1/runs", {"agent": agent, "input": blocks}), 413, "too_large")
    pieces = (b" " * 1_000_000 for _ in range(11))  # no Content-Length
    refused(workspace.http.post("/v1/runs", content=pieces), 413, "too_large")
    assert workspace.get("/v1/runs")["data"] == []


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "terminate", "input"])
def test_commands_on_a_finished_run_are_conflicts(workspace: Workspace, finished: RunView, command: str) -> None:
    body = {"content": "x"} if command == "input" else {}

    refused(post(workspace, f"/v1/runs/{finished.id}/{command}", body), 409, "run_finished")

    assert finished.row["status"] == "completed"


def test_a_run_that_did_not_fail_is_not_retried(workspace: Workspace, finished: RunView) -> None:
    refused(post(workspace, f"/v1/runs/{finished.id}/retry"), 409, "conflict")


@pytest.mark.parametrize("page", ["x", "!!!", "Zm9v", "é", "cw", "czEyMzQ1Njc4OTAxMjM0NTY3ODkw", "MjAyNnxydW5f", ""])
def test_a_foreign_page_cursor_is_malformed(workspace: Workspace, finished: RunView, page: str) -> None:
    session = finished.row["session_id"]
    agent = finished.row["agent"]["id"]
    paths = ["runs", "agents", "sessions", "api_keys", f"agents/{agent}/versions", f"runs/{finished.id}/events"]
    for path in (*paths, f"sessions/{session}/events", f"sessions/{session}/items"):
        refused(workspace.http.get(f"/v1/{path}", params={"page": page}), 400, "malformed_cursor")


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "99999", "9" * 40, "1.sevt_x.0", "١"])
def test_a_foreign_stream_cursor_is_malformed(workspace: Workspace, finished: RunView, cursor: str) -> None:
    for path in (f"/v1/runs/{finished.id}", f"/v1/sessions/{finished.row['session_id']}"):
        headers = {b"Last-Event-ID": cursor.encode()}
        refused(workspace.http.get(f"{path}/events/stream", headers=headers), 400, "malformed_cursor")
        refused(workspace.http.get(f"{path}/events/stream", params={"after": cursor}), 400, "malformed_cursor")


def test_a_stream_cursor_beyond_the_end_is_malformed(workspace: Workspace, finished: RunView) -> None:
    end = finished.events()[-1]["seq"]
    for after in (end + 1, 10**30):
        response = workspace.http.get(f"/v1/runs/{finished.id}/events/stream", params={"after": after})
        refused(response, 400, "malformed_cursor")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/runs", {"limit": "0"}),
        ("/v1/runs", {"limit": "101"}),
        ("/v1/runs", {"limit": "x"}),
        ("/v1/runs", {"order": "sideways"}),
        ("/v1/runs", {"status": "lost"}),
        ("/v1/runs", {"created_at[gt]": "yesterday"}),
        ("/v1/sessions", {"agent_version": str(10**30)}),
        ("/v1/runs/run_x/wait", {"timeout_seconds": "nan"}),
        ("/v1/runs/run_x/wait", {"timeout_seconds": "inf"}),
        ("/v1/runs/run_x/wait", {"timeout_seconds": "-1"}),
        ("/v1/agents/agent_x/versions/-99999999999999999999", {}),
        ("/v1/agents/agent_x/versions/99999999999999999999", {}),
        ("/v1/agents/agent_%00", {}),
        ("/v1/runs/run_%00/wait", {}),
        ("/v1/runs?agent_id=a%00b", {}),
        ("/v1/sessions/s/events?types=%00", {}),
        ("/v1/sessions/s/events/stream?types=%00", {}),
    ],
)
def test_a_query_that_cannot_be_used_is_refused(workspace: Workspace, path: str, params: dict[str, str]) -> None:
    address = httpx2.URL(path).copy_merge_params(params) if params else path

    refused(workspace.http.get(address), 422, "invalid_request")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"x-api-key": "pdr_wrong"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer"},
    ],
    ids=str,
)
def test_without_a_right_key_nothing_is_answered(workspace: Workspace, headers: dict[str, str]) -> None:
    with httpx2.Client(base_url=workspace.service.url, headers=headers, verify=TLS) as http:
        for method, path in operations(workspace):
            response = http.request(method, fill(path, {}))
            refused(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_is_taken_from_either_header_and_refused_once_revoked(workspace: Workspace) -> None:
    made = workspace.post("/v1/api_keys", {"name": "ci"})
    url = workspace.service.url + "/v1/runs"
    either = ({"x-api-key": made["key"]}, {"Authorization": f"bearer {made['key']}"})
    assert [httpx2.get(url, headers=headers).status_code for headers in either] == [200, 200]

    workspace.http.delete(f"/v1/api_keys/{made['id']}")

    for headers in either:
        refused(httpx2.get(url, headers=headers), 401, "unauthenticated")


def test_without_the_scope_every_operation_is_forbidden(workspace: Workspace) -> None:
    """A key that may do nothing; and one that may read, which may do no more."""
    with workspace.service.workspace(()) as nobody:
        for method, path in operations(workspace):
            refused(nobody.http.request(method, fill(path, {}), json=body_for(method, path)), 403, "forbidden")
    with workspace.service.workspace(("agents:read", "sessions:read", "runs:read")) as reader:
        for method, path in operations(workspace):
            if method == "GET" and "{" not in path and "api_keys" not in path:
                assert reader.http.request(method, path).status_code == 200
            elif method != "GET":
                refused(reader.http.request(method, fill(path, {}), json=body_for(method, path)), 403, "forbidden")


def test_a_key_gives_no_scope_away_that_it_lacks(workspace: Workspace) -> None:
    with workspace.service.workspace(("keys:write", "runs:read")) as limited:
        refused(post(limited, "/v1/api_keys", {"name": "x", "scopes": ["runs:write"]}), 403, "forbidden")
        assert limited.post("/v1/api_keys", {"name": "x"})["scopes"] == ["runs:read", "keys:write"]


def test_another_workspaces_ids_do_not_exist(workspace: Workspace, record_property: Callable[[str, object], None]) -> None:
    """Every operation of the OpenAPI document that takes an id, and every body that names one."""
    run = workspace.start({"text": "mine"})
    row = run.wait()
    key = workspace.get("/v1/api_keys")["data"][0]["id"]
    ids = {"run_id": run.id, "session_id": row["session_id"], "agent_id": row["agent"]["id"], "key_id": key, "version": "1"}
    ids["thread_id"] = workspace.get(f"/v1/sessions/{row['session_id']}/threads")["data"][0]["id"]
    ids["event_id"] = run.events()[0]["id"]
    ids["file_id"] = workspace.http.post("/v1/files", files={"file": ("a", b"mine")}).json()["id"]
    published = {"tools": [{"name": "publish_artifact", "input": {"path": "a"}}]}
    resources = [{"type": "file", "file_id": ids["file_id"], "mount_path": "a"}]
    publisher = workspace.start(published, {"text": "ok"}, tools=["publish_artifact"], resources=resources).wait()
    (artifact,) = workspace.get(f"/v1/sessions/{publisher['session_id']}/artifacts")["data"]
    ids["artifact_id"] = artifact["id"]
    resource = {"type": "file", "file_id": ids["file_id"]}
    ids["resource_id"] = post(workspace, f"/v1/sessions/{ids['session_id']}/resources", resource).json()["id"]
    ids["batch_id"] = workspace.post("/v1/batches", {"agent": ids["agent_id"], "inputs": ["mine"]})["id"]
    dry = {"action": "cancel", "filter": {"batch_id": ids["batch_id"]}}
    ids["operation_id"] = workspace.post("/v1/bulk_operations", dry)["id"]
    ids["approval_id"] = pending_approval(workspace)
    before = workspace.get(f"/v1/sessions/{ids['session_id']}"), workspace.get(f"/v1/agents/{ids['agent_id']}"), run.row
    with workspace.service.workspace() as stranger:
        asked = [(method, path) for method, path in operations(workspace) if "{" in path]
        assert len(asked) >= 25
        record_property("looked_at", len(asked))
        for method, path in asked:
            response = stranger.http.request(method, fill(path, ids), json=body_for(method, path))
            refused(response, 404, "not_found")
        own = stranger.agent()["id"]
        for path, body in (
            ("/v1/runs", {"agent": ids["agent_id"], "input": "x"}),
            ("/v1/runs", {"agent": own, "session_id": ids["session_id"], "input": "x"}),
            ("/v1/sessions", {"agent": ids["agent_id"]}),
            ("/v1/sessions", {"agent": {"id": ids["agent_id"], "version": 1}}),
        ):
            refused(post(stranger, path, body), 404, "not_found")
        for path in ("/v1/runs", "/v1/sessions"):
            assert stranger.get(path, agent_id=ids["agent_id"])["data"] == []
        assert stranger.get("/v1/runs", session_id=ids["session_id"])["data"] == []
    after = workspace.get(f"/v1/sessions/{ids['session_id']}"), workspace.get(f"/v1/agents/{ids['agent_id']}"), run.row
    assert after == before
    assert workspace.get("/v1/api_keys")["data"][0]["revoked_at"] is None
    assert workspace.http.get(f"/v1/files/{ids['file_id']}/content").content == b"mine"
    assert workspace.http.get(f"/v1/artifacts/{ids['artifact_id']}/content").content == b"mine"


@pytest.mark.skipif(secret_reader()("ANTHROPIC_API_KEY") is not None, reason="this machine has a key")
def test_a_provider_without_its_key_fails_the_run_and_names_the_setting(workspace: Workspace) -> None:
    run = workspace.start(text="hello", agent=workspace.agent(model="anthropic:claude-sonnet-5-5")["id"])

    row = run.wait()

    assert (row["status"], row["error"]["code"], row["error"]["retryable"]) == ("failed", "provider_auth", False)
    assert "ANTHROPIC_API_KEY" in row["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/agents/none", 404, "not_found_error"),
        ("POST", "/v1/agents", 422, "invalid_request_error"),
        ("GET", "/v1/runs?page=x", 400, "invalid_request_error"),
        ("GET", "/v1/nothing", 404, "not_found_error"),
    ],
)
def test_callers_with_anthropic_version_get_that_shape(
    workspace: Workspace, method: str, path: str, status: int, kind: str
) -> None:
    response = workspace.http.request(method, path, headers={"anthropic-version": "2023-06-01"})

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"]


def test_every_answer_has_a_request_id_of_its_own(workspace: Workspace) -> None:
    asked = [
        workspace.http.get("/v1/runs"),
        workspace.http.get("/livez"),
        workspace.http.get("/openapi.json"),
        workspace.http.get("/nowhere"),
        workspace.http.put("/v1/runs"),
        workspace.http.get("/v1/runs/"),
        httpx2.get(workspace.service.url + "/v1/runs"),
        workspace.http.get("/v1/runs", headers={"Host": "[bad"}),
    ]

    assert [response.status_code for response in asked] == [200, 200, 200, 404, 405, 404, 401, 200]
    ids = [response.headers["request-id"] for response in asked]
    assert len(set(ids)) == len(ids)
    assert all(request_id.startswith("req_") for request_id in ids)
