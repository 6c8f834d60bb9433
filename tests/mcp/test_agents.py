"""Agents with MCP servers, through the front door: servers of the registries, one behind HTTP, and what goes wrong."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from anthropic import Anthropic
from temporalio.client import WorkflowHistory

from tests.mcp.web import TOKEN, WebServer, serving
from tests.service import RunView, ServiceThread, Workspace

NODE = Path(__file__).parents[1] / "node"
FILES_SERVER = NODE / "node_modules" / "@modelcontextprotocol" / "server-filesystem" / "dist" / "index.js"
VARIABLE = "PERDURE_TEST_MCP_TOKEN"
ALLOW = {"permission_policy": {"type": "always_allow"}}


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    server = WebServer(token=TOKEN)
    with serving(server.app(), server.port):
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, database_url: str | None, web: WebServer) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("mcp")
    time_server = Path(sys.executable).with_name("mcp-server-time")
    program = Path(__file__).with_name("program.py")
    (data / "perdure.toml").write_text(f"""
[tools]
mcp_allow_hosts = ["{web.host}", "127.0.0.1:9", "mcp.example"]

[secrets]
web = {{ env = "{VARIABLE}", hosts = ["{web.host}", "127.0.0.1:9", "mcp.example"] }}

[mcp.time]
argv = ["{time_server}"]

[mcp.files]
argv = ["node", "{FILES_SERVER}", "{{directory}}"]

[mcp.program]
argv = ["{sys.executable}", "-S", "{program}"]
secrets = {{ TOKEN = "web" }}
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, TOKEN)
        with ServiceThread(data, database_url) as running:
            yield running


@pytest.fixture
def workspace(service: ServiceThread) -> Iterator[Workspace]:
    with service.workspace() as fresh:
        yield fresh


def unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(f"NOT TESTED against server-filesystem: {reason}")


@pytest.fixture(scope="module")
def files_server() -> None:
    """`npm ci`, once; other test processes wait for it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        unavailable("node and npm are not installed")
    with (NODE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if FILES_SERVER.exists():
            return
        done = subprocess.run(["npm", "ci"], cwd=NODE, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        unavailable(f"npm ci failed: {done.stderr[-500:]}")


def definition(*servers: dict[str, Any], **toolset: Any) -> dict[str, Any]:
    toolset = toolset or {"default_config": ALLOW}
    tools = [{"type": "mcp_toolset", "mcp_server_name": server["name"], **toolset} for server in servers]
    return {"mcp_servers": list(servers), "tools": tools}


def calling(*uses: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"tools": [{"name": name, "input": arguments} for name, arguments in uses]}


def results(run: RunView) -> dict[str, dict[str, Any]]:
    """The results by server and tool."""
    events = run.events()
    uses = {e["id"]: f"{e['mcp_server_name']}/{e['name']}" for e in events if e["type"] == "agent.mcp_tool_use"}
    return {uses[e["mcp_tool_use_id"]]: e for e in events if e["type"] == "agent.mcp_tool_result"}


def history(service: ServiceThread, run: RunView) -> str:
    async def fetch() -> WorkflowHistory:
        return await service.temporal.get_workflow_handle(run.id).fetch_history()

    return service.call(fetch()).to_json()


@pytest.mark.usefixtures("files_server")
def test_servers_of_the_registries_and_one_behind_http(
    service: ServiceThread, workspace: Workspace, web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = {"type": "url", "name": "web", "url": web.url, "authorization_secret": "web"}
    clock = {"type": "stdio", "name": "clock", "server": "time"}
    agent = workspace.agent(**definition(clock, {"type": "stdio", "name": "files"}, url))
    assert agent["mcp_servers"][0]["server"] == "time"
    session = workspace.post("/v1/sessions", {"agent": agent["id"]}, expect=201)["id"]
    run = workspace.start(
        calling(
            ("clock__get_current_time", {"timezone": "Europe/Paris"}),
            ("clock__convert_time", {"source_timezone": "Nowhere", "time": "12:00", "target_timezone": "UTC"}),
            ("web__add", {"a": 20, "b": 22}),
            ("web__leak", {}),
        ),
        calling(("files__list_allowed_directories", {}), ("files__write_file", {"path": "notes.txt", "content": "x"})),
        {"text": "Done."},
        agent=agent["id"],
        session_id=session,
    )
    assert run.wait()["status"] == "completed"

    found = results(run)
    assert found["web/add"]["content"] == [{"type": "text", "text": "42"}]
    assert found["web/add"]["is_error"] is False
    assert found["web/leak"]["is_error"]
    assert "Bearer [secret] was not enough" in found["web/leak"]["content"][0]["text"]
    assert '"timezone": "Europe/Paris"' in found["clock/get_current_time"]["content"][0]["text"]
    assert found["clock/convert_time"]["is_error"]
    assert not found["files/write_file"]["is_error"]
    assert str(service.settings.files) in found["files/list_allowed_directories"]["content"][0]["text"]
    items = workspace.get(f"/v1/sessions/{session}/items")["data"]
    shown = {f"{i['mcp_server_name']}/{i['name']}": i["result"]["is_error"] for i in items if i["type"] == "tool_use"}
    assert shown["web/add"] is False

    everything = str(run.events()) + history(service, run) + str(items)
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("mcp.server")]
    assert TOKEN not in everything + str(ours)


def test_a_server_that_is_away_is_told_once_and_fails_no_run(workspace: Workspace) -> None:
    away = {"type": "url", "name": "away", "url": "http://127.0.0.1:9/mcp"}
    slow = {"type": "stdio", "name": "slow", "server": "program", "timeout_seconds": 1}
    agent = workspace.agent(**definition(away, {"type": "stdio", "name": "program"}, slow))
    run = workspace.start(
        calling(("away__anything", {}), ("program__die", {}), ("slow__silent", {})),
        calling(("program__count", {})),  # alone: it tells how many calls its process has had
        calling(("program__leak", {})),
        {"text": "Done."},
        agent=agent["id"],
    )
    assert run.wait()["status"] == "completed"

    (told,) = [event["error"] for event in run.events() if event["type"] == "session.error"]
    assert (told["type"], told["mcp_server_name"]) == ("mcp_connection_failed_error", "away")
    assert told["message"] == "no connection can be made to it"
    found = results(run)
    assert found["program/die"]["is_error"]
    assert found["slow/silent"]["is_error"]
    assert found["slow/silent"]["content"][0]["text"].startswith(
        "slow__silent took longer than 1 seconds; whether it had an effect"
    )
    assert found["program/count"]["content"][0]["text"] == "1"
    assert found["program/leak"]["content"][0]["text"] == "401 for the token [secret]"
    assert TOKEN not in str(run.events())


def test_a_cancelled_run_ends_its_servers_call(workspace: Workspace, web: WebServer, service: ServiceThread) -> None:
    url = {"type": "url", "name": "web", "url": web.url, "authorization_secret": "web"}
    agent = workspace.agent(**definition(url, {"type": "stdio", "name": "program"}))
    run = workspace.start(calling(("web__wait", {}), ("program__hang", {})), agent=agent["id"])
    assert web.began.wait(20)
    pids = service.settings.files.rglob("pids")
    deadline = time.monotonic() + 20
    while not (path := next(service.settings.files.rglob("pids"), None)) or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    del pids

    run.command("cancel")
    assert run.wait()["status"] == "cancelled"

    assert web.stopped.wait(5)
    assert all(not _runs(int(pid)) for pid in path.read_text().split())
    assert {name for name, result in results(run).items() if result["is_error"]} == {"web/wait", "program/hang"}


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def test_only_what_is_enabled_is_offered_and_the_sdk_reads_it(workspace: Workspace, service: ServiceThread) -> None:
    sdk = Anthropic(base_url=service.url, auth_token=workspace.key, api_key=None, max_retries=0)
    agent = sdk.beta.agents.create(
        name="sdk",
        model="demo:script",
        mcp_servers=[{"type": "url", "name": "remote", "url": "https://mcp.example/mcp"}],
        tools=[
            {
                "type": "mcp_toolset",
                "mcp_server_name": "remote",
                "default_config": {"enabled": False},
                "configs": [{"name": "one", "enabled": True, "permission_policy": {"type": "always_allow"}}],
            }
        ],
    )
    (toolset,) = agent.tools
    assert toolset.type == "mcp_toolset"
    assert (toolset.default_config.enabled, toolset.default_config.permission_policy.type) == (False, "always_ask")
    assert (toolset.configs[0].enabled, toolset.configs[0].permission_policy.type) == (True, "always_allow")
    assert agent.mcp_servers[0].name == "remote"

    configs = [{"name": "count", "enabled": True}]
    off = definition({"type": "stdio", "name": "program"}, default_config={"enabled": False, **ALLOW}, configs=configs)
    run = workspace.start(
        calling(("program__environment", {}), ("program__count", {})), {"text": "Done."}, agent=workspace.agent(**off)["id"]
    )
    assert run.wait()["status"] == "completed"
    (refused,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
    assert refused["content"][0]["text"] == "there is no tool 'program__environment'; there are: program__count"
    assert results(run)["program/count"]["content"][0]["text"] == "1"


def test_a_person_is_asked_before_what_nobody_allowed(workspace: Workspace) -> None:
    configs = [{"name": "die", "permission_policy": {"type": "always_deny"}}]
    agent = workspace.agent(**definition({"type": "stdio", "name": "program"}, configs=configs))
    uses = calling(("program__count", {}), ("program__environment", {}), ("program__die", {}))
    run = workspace.start(uses, {"text": "Done."}, agent=agent["id"])
    run.until(lambda row: row["waiting_for"] == "approval")

    pending = workspace.get("/v1/approvals", status="pending", run_id=run.id)["data"]
    by_name = {approval["tool_name"]: approval["id"] for approval in pending}
    assert by_name.keys() == {"program__count", "program__environment"}
    workspace.post(f"/v1/approvals/{by_name['program__count']}/decision", {"decision": "approve"})
    workspace.post(f"/v1/approvals/{by_name['program__environment']}/decision", {"decision": "deny"})
    assert run.wait()["status"] == "completed"

    assert {name: result["content"][0]["text"] for name, result in results(run).items()} == {
        "program/count": "1",
        "program/environment": "A person denied this call.",
        "program/die": "This agent may not use that tool here.",
    }


STDIO = {"type": "stdio", "name": "program"}
URL = {"type": "url", "name": "web", "url": "https://mcp.example/mcp"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (definition({"type": "stdio", "name": "rm"}), "allows no MCP server 'rm'. Allowed: time, files, program"),
        (definition({**STDIO, "command": "rm", "args": ["-rf", "/"]}), "the operator says what may run"),
        (definition({**URL, "authorization_secret": "none"}), "no secret 'none'"),
        (definition({**URL, "headers": {"X-Key": {"secret": "none"}}}), "no secret 'none'"),
        (definition({**URL, "url": "http://mcp.example/mcp", "authorization_secret": "web"}), "https only"),
        (definition({**URL, "url": "http://169.254.169.254/mcp"}), "Not a public address"),
        (definition({**URL, "url": "file:///etc/passwd"}), "begins with http"),
        (definition({**URL, "url": "https://me:pw@mcp.example/mcp"}), "user name or password"),
        (definition(URL, {**STDIO, "name": "web", "server": "program"}), "listed twice"),
        ({**definition(URL), "mcp_servers": [URL, URL]}, "two MCP servers have one name"),
        ({**definition(URL), "mcp_servers": []}, "no MCP server 'web' in mcp_servers"),
        ({**definition(URL), "tools": []}, "no mcp_toolset in tools uses the MCP server 'web'"),
        (definition(URL, configs=[{"name": "a"}, {"name": "a"}]), "configured twice"),
        (definition(URL, default_config={"permission_policy": {"type": "never"}}), "always_allow"),
    ],
)
def test_what_is_refused(workspace: Workspace, body: dict[str, Any], says: str) -> None:
    answer = workspace.http.post("/v1/agents", json={"name": "a", "model": "demo:script", **body})
    assert answer.status_code == 422, answer.text
    assert says in answer.text
