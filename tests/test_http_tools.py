"""Tools that reach the outside, through the front door: the endpoint of docs/how-to/add-an-http-tool.md, and a web search."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.ports import free_port
from tests.service import ServiceThread, Workspace

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-an-http-tool.md"
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER_SECRET = "whsec_" + SECRET[6:].swapcase()

ENDPOINT = free_port()


class _SearchEngine(BaseHTTPRequestHandler):
    """As SearXNG answers; tests/tools/test_web_search.py is strict about the questions."""

    def do_GET(self) -> None:
        body = json.dumps({"results": [{"title": "Ice", "url": "https://ice.example/", "content": "It is cold."}]}).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[None]:
    """The page's example, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SUPPORT_SECRET", SECRET)
        server = uvicorn.Server(uvicorn.Config(names["app"], port=ENDPOINT, log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory, database_url: str | None, receiver: None) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("outside")
    search = ThreadingHTTPServer(("127.0.0.1", 0), _SearchEngine)
    threading.Thread(target=search.serve_forever, daemon=True).start()
    (data / "perdure.toml").write_text(f"""
[tools]
fetch_allow_hosts = ["127.0.0.1:{ENDPOINT}"]
web_search = {{ backend = "searxng", base_url = "http://127.0.0.1:{search.server_port}" }}

[secrets]
support = {{ env = "PERDURE_TEST_SUPPORT", hosts = ["127.0.0.1:{ENDPOINT}", "127.0.0.1:9"] }}
other = {{ env = "PERDURE_TEST_OTHER", hosts = ["127.0.0.1:{ENDPOINT}", "127.0.0.1:9"] }}
""")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PERDURE_TEST_SUPPORT", SECRET)
        environment.setenv("PERDURE_TEST_OTHER", OTHER_SECRET)
        with ServiceThread(data, database_url) as running:
            yield running
    search.shutdown()
    search.server_close()


@pytest.fixture
def workspace(outside: ServiceThread) -> Iterator[Workspace]:
    with outside.workspace() as fresh:
        yield fresh


def ticket(**members: Any) -> dict[str, Any]:
    """The page's agent's tool, at this test's port."""
    (text,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    described = json.loads(text)
    url = f"http://127.0.0.1:{ENDPOINT}{str(described['url']).removeprefix('https://support.example')}"
    return {**described, "url": url, "permission_policy": {"type": "always_allow"}, **members}


def test_the_documented_receiver_answers_what_is_signed_for_it(
    outside: ServiceThread, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    agent = workspace.agent(
        tools=[
            ticket(),
            ticket(name="forged", secret="other"),
            ticket(name="elsewhere", url="http://127.0.0.1:9/"),
            "web_search",
        ]
    )
    names = ("create_ticket", "forged", "elsewhere")
    calls: list[dict[str, Any]] = [{"name": name, "input": {"title": "It smokes"}} for name in names]
    calls.append({"name": "web_search", "input": {"query": "ice"}})
    run = workspace.start({"tools": calls}, {"text": "Done."}, agent=agent["id"])
    assert run.wait()["status"] == "completed"

    events = run.events()
    uses = {event["id"]: event["name"] for event in events if event["type"] == "agent.tool_use"}
    results = {uses[e["tool_use_id"]]: e for e in events if e["type"] == "agent.tool_result"}
    said = {name: (result["is_error"], result["content"][0]["text"]) for name, result in results.items()}
    assert said == {
        "create_ticket": (False, '{"ticket":"T-1: It smokes"}'),
        "forged": (True, 'forged answered 401 Unauthorized\n{"detail":"not signed by us"}'),
        "elsewhere": (True, "127.0.0.1: not a public address, which is all that may be reached"),
        "web_search": (False, "1. Ice\n   https://ice.example/\n   It is cold."),
    }

    shown = json.dumps([events, workspace.get(f"/v1/agents/{agent['id']}")]) + caplog.text
    history = outside.call(_history(outside, run.id))
    kept = b"".join(file.read_bytes() for file in outside.settings.data_dir.rglob("*") if file.is_file())
    for secret in (SECRET, OTHER_SECRET):
        for place in (shown.encode(), history.encode(), kept):
            assert secret[6:].encode() not in place
    assert b"T-1: It smokes" in kept or os.environ.get("PERDURE_TEST_DATABASE") == "postgres"


async def _history(service: ServiceThread, run_id: str) -> str:
    return (await service.temporal.get_workflow_handle(run_id).fetch_history()).to_json()


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"secret": "none-such"}, "/tools/0/secret"),
        (
            {"input_schema": {"type": "object", "properties": {"a": {"type": "strin"}}}},
            "/tools/0/input_schema/properties/a/type",
        ),
        ({"input_schema": {"type": "string"}}, "/tools/0/input_schema"),
        ({"url": "ftp://support.example/"}, "/tools/0/url"),
        ({"url": "http://user:pw@support.example/"}, "/tools/0/url"),
        ({"effect": "twice"}, "/tools/0/effect"),
        ({"timeout_seconds": 601}, "/tools/0/timeout_seconds"),
        ({"headers": {}}, "/tools/0/headers"),
        ({"name": "read"}, "/tools/0/name"),
        ({"name": "no spaces please"}, "/tools/0/name"),
    ],
)
def test_a_tool_that_cannot_be_is_refused_at_once(workspace: Workspace, members: dict[str, Any], pointer: str) -> None:
    body = {"name": "a", "model": "demo:script", "tools": [ticket(**members)]}
    problem = workspace.post("/v1/agents", body, expect=422)
    (error,) = problem["errors"]
    assert error["pointer"].replace("/http", "") == pointer
    assert SECRET not in json.dumps(problem)


def test_a_search_without_a_backend(service: ServiceThread) -> None:
    with service.workspace() as workspace:
        body: dict[str, Any] = {"name": "a", "model": "demo:script", "tools": ["web_search"]}
        problem = workspace.post("/v1/agents", body, expect=422)
        assert "the operator has set up none" in problem["detail"]

        # A part of the whole set, it is left out.
        agent = workspace.agent(
            tools=[{"type": "agent_toolset_20260401", "configs": [{"name": "web_search", "enabled": False}]}]
        )
        use = {"tools": [{"name": "web_search", "input": {"query": "ice"}}]}
        run = workspace.start(use, {"text": "Done."}, agent=agent["id"])
        assert run.wait()["status"] == "completed"
        (result,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
        assert "there is no tool 'web_search'" in result["content"][0]["text"]
