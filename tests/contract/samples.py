"""What several tests of the contract share: the operations, what to send to each, and what a refusal looks like."""

from typing import Any

import httpx2

from tests.service import Workspace

PROBLEM = {"type", "title", "status", "detail", "instance", "code", "request_id", "retryable"}


def pending_approval(workspace: Workspace) -> str:
    """The id of an approval that waits for somebody to decide."""
    tools = [{"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}]
    run = workspace.start({"tools": [{"name": "write", "input": {"file_path": "a", "content": "x"}}]}, tools=tools)
    run.until(lambda row: row["waiting_for"] == "approval")
    return workspace.get("/v1/approvals", run_id=run.id)["data"][0]["id"]


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in the answer, checked for all that every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() - {"errors"} == PROBLEM
    assert (problem["code"], problem["status"], problem["type"]) == (code, status, f"urn:perdure:{code}")
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["request-id"]
    return problem


def operations(workspace: Workspace) -> list[tuple[str, str]]:
    """All that need a key: method and path."""
    document = workspace.get("/openapi.json")
    return [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    ]


def fill(path: str, ids: dict[str, str]) -> str:
    """The path with those ids; with ones that name nothing where there is none. A new kind of id fails here."""
    names = {"run_id": "run_x", "session_id": "sesn_x", "agent_id": "agent_x", "key_id": "key_x", "approval_id": "appr_x"}
    known = {**names, "thread_id": "sthr_x", "version": "1", "file_id": "file_x", "artifact_id": "artf_x"}
    others = {"event_id": "sevt_x", "resource_id": "sesrsc_x", "batch_id": "batch_x", "operation_id": "bulk_x"}
    return path.format(**{**known, **others, **ids})


BODIES: dict[str, dict[str, Any]] = {
    "/v1/agents": {"name": "a", "model": "demo:echo"},
    "/v1/agents/{agent_id}/rollback": {"version": 1},
    "/v1/sessions": {"agent": "a"},
    "/v1/sessions/{session_id}/events": {"events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}]},
    "/v1/sessions/{session_id}/messages": {"content": "x"},
    "/v1/sessions/{session_id}/resources": {"type": "file", "file_id": "file_x"},
    "/v1/runs": {"agent": "a", "input": "x"},
    "/v1/sessions/{session_id}/queue/{event_id}": {"content": "x"},
    "/v1/runs/{run_id}/input": {"content": "x"},
    "/v1/approvals/{approval_id}/decision": {"decision": "approve"},
    "/v1/external_events": {"type": "x"},
    "/v1/api_keys": {"name": "x"},
}


def body_for(method: str, path: str) -> dict[str, Any] | None:
    return BODIES.get(path, {}) if method in ("POST", "PATCH") else None
