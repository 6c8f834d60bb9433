"""The OpenAPI document is true: no generated request gets a 5xx, an undeclared status or an undeclared shape."""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from tests.contract.samples import pending_approval
from tests.service import Workspace

_SCHEMATHESIS: Any = schemathesis
_CHECKS: Any = checks  # generic over a type that they do not name
CHECKS: list[Any] = [
    _SCHEMATHESIS.checks.not_a_server_error,
    _CHECKS.status_code_conformance,
    _CHECKS.content_type_conformance,
    _CHECKS.response_headers_conformance,
    _CHECKS.response_schema_conformance,
]
PARTS = 3
PER_OPERATION = 20
NOWHERE = 8
"""Of an operation whose ids are generated: nothing is found by them."""


def document(workspace: Workspace) -> dict[str, Any]:
    return workspace.get("/openapi.json")


def test_every_refusal_is_declared_as_a_problem(workspace: Workspace) -> None:
    found = 0
    for path, methods in document(workspace)["paths"].items():
        for method, operation in methods.items():
            if "security" not in operation:
                continue
            statuses = operation["responses"]
            assert statuses.keys() >= {"400", "401", "403", "404", "409", "413", "422", "503"}, (method, path)
            for status, response in statuses.items():
                if status >= "400":
                    found += 1
                    assert response["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem"), (
                        method,
                        path,
                    )
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/AnthropicError"), (method, path)
    assert found > 200
    assert "HTTPValidationError" not in document(workspace)["components"]["schemas"]


def test_every_reference_leads_somewhere(workspace: Workspace) -> None:
    described = document(workspace)
    names = described["components"]["schemas"].keys()

    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(described))

    assert len(references) > 100
    assert set(references) <= names


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(PARTS))
def test_generated_requests_get_declared_answers(
    workspace: Workspace, part: int, record_property: Callable[[str, object], None]
) -> None:
    """With ids that exist and ids that do not. Streams are left out: a session's never ends. Every operation is in one part."""
    schema: Any = schemathesis.openapi.from_dict(document(workspace))  # whose types say nothing of operations
    schema.config.update(base_url=workspace.service.url)
    unreached: list[str] = []
    sent = 0
    for operation in [found.ok() for found in schema.get_all_operations()][part::PARTS]:
        if operation.path.endswith("/stream"):
            continue
        statuses = fuzz(operation, workspace, {}, NOWHERE if "{" in operation.path else PER_OPERATION)
        if "{" in operation.path:
            run = workspace.start({"text": "hello"}).wait()  # fresh each time: some operations archive and delete
            known = {"run_id": run["id"], "session_id": run["session_id"], "agent_id": run["agent"]["id"], "version": 1}
            if "{thread_id}" in operation.path:
                (thread,) = workspace.get(f"/v1/sessions/{run['session_id']}/threads")["data"]
                known["thread_id"] = thread["id"]
            if "{event_id}" in operation.path:
                known |= waiting_message(workspace)
            if "{approval_id}" in operation.path:
                known["approval_id"] = pending_approval(workspace)
            if "{batch_id}" in operation.path:
                slow = json.dumps({"script": [{"text": "word " * 4000, "delay_ms": 50}]})
                body = {"agent": run["agent"]["id"], "inputs": [slow]}
                known["batch_id"] = workspace.post("/v1/batches", body, expect=201)["id"]
            if "{operation_id}" in operation.path:
                body = {"action": "cancel", "filter": {"batch_id": "none"}}
                known["operation_id"] = workspace.post("/v1/bulk_operations", body, expect=202)["id"]
            if any(name in operation.path for name in ("file_id", "artifact_id", "resource_id")):
                known |= given_and_published(workspace)
            statuses += fuzz(operation, workspace, known, PER_OPERATION)
        sent += statuses.total()
        if not any(200 <= status < 300 for status in statuses):
            unreached.append(f"{operation.method.upper()} {operation.path}")
    record_property("looked_at", sent)
    # A run that is over takes no command, the key that asks is not revoked, no agent or file is named as generated text is, and
    # no generated document is a whole session.
    assert {address for address in unreached if not address.startswith("POST /v1/runs")} <= {
        "POST /v1/agents",
        "POST /v1/sessions",
        "POST /v1/sessions/import",
        "POST /v1/batches",
        "POST /v1/agents/{agent_id}",
        "POST /v1/agents/{agent_id}/rollback",
        "POST /v1/sessions/{session_id}/resources",
        "DELETE /v1/api_keys/{key_id}",
    }


def waiting_message(workspace: Workspace) -> dict[str, Any]:
    """A message in the queue of a session, which is paused."""
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    workspace.post(f"/v1/sessions/{session}/pause")
    event = workspace.post(f"/v1/sessions/{session}/messages", {"content": "later"})["event"]
    return {"session_id": session, "event_id": event["id"]}


def given_and_published(workspace: Workspace) -> dict[str, Any]:
    """Ids of a file, an artifact, and the session that has both."""
    file = workspace.http.post("/v1/files", files={"file": ("a.txt", b"given")}).json()["id"]
    publish = {"tools": [{"name": "publish_artifact", "input": {"path": "a.txt"}}]}
    resources = [{"type": "file", "file_id": file, "mount_path": "a.txt"}]
    run = workspace.start(publish, {"text": "ok"}, tools=["publish_artifact"], resources=resources).wait()
    (artifact,) = workspace.get(f"/v1/sessions/{run['session_id']}/artifacts")["data"]
    (resource,) = workspace.get(f"/v1/sessions/{run['session_id']}/resources")["data"]
    return {"file_id": file, "artifact_id": artifact["id"], "resource_id": resource["id"], "session_id": run["session_id"]}


def fuzz(operation: Any, workspace: Workspace, ids: dict[str, Any], requests: int) -> Counter[int]:
    """Send what is made from the operation's own description; the statuses that came back."""
    statuses = Counter[int]()

    @settings(
        max_examples=requests,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=cases(operation))
    def one(case: Any) -> None:
        case.path_parameters = {
            **(case.path_parameters or {}),
            **{n: v for n, v in ids.items() if f"{{{n}}}" in operation.path},
        }
        if operation.path.endswith("/wait"):
            case.query = {**(case.query or {}), "timeout_seconds": 0.01}
        headers = {"Authorization": f"Bearer {workspace.key}"}
        statuses[case.call_and_validate(headers=headers, checks=CHECKS, timeout=20).status_code] += 1

    one()
    return statuses


def cases(operation: Any) -> Any:
    """Requests that the document allows, and requests that it does not."""
    return strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
