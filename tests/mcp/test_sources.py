"""MCP servers as the source of an agent's tools, without the rest of the service."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import JsonValue

from domain.agents import AgentConfig
from domain.errors import Invalid
from domain.secrets import Secrets
from domain.tools import Effect, ToolContext
from tests.mcp.web import TOKEN, WebServer, serving
from tools.mcp import connections, listing
from tools.mcp.config import McpCommand
from tools.mcp.source import McpTools
from tools.mcp.web import Network
from tools.toolbox import ToolOutcome, call_tool

PROGRAM = (sys.executable, "-S", str(Path(__file__).with_name("program.py")))


def agent(**servers: dict[str, Any]) -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "name": "a",
            "model": "demo:script",
            "mcp_servers": [{"name": name, **server} for name, server in servers.items()],
            "tools": [{"type": "mcp_toolset", "mcp_server_name": name} for name in servers],
        }
    )


LOCAL = agent(local={"type": "stdio"})


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., McpTools]]:
    made: list[McpTools] = []

    def tools(*hosts: str, **commands: McpCommand) -> McpTools:
        commands = commands or {"local": McpCommand(argv=PROGRAM, secrets={"TOKEN": "web"}, env=("MCP_TEST_PASSED",))}
        made.append(
            McpTools(
                commands, os.environ.get, Secrets({"web": TOKEN}, {"web": (*hosts, "mcp.example")}), Network(frozenset(hosts))
            )
        )
        return made[-1]

    yield tools
    for one in made:
        await one.close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer(token=TOKEN)
    with serving(server.app(), server.port):
        yield server


@pytest.fixture
def context(tmp_path: Path) -> Callable[[str], ToolContext]:
    return lambda session="s1": ToolContext("w", session, "r", "t", tmp_path / session)


async def call(tools: McpTools, config: AgentConfig, name: str, context: ToolContext, **arguments: JsonValue) -> ToolOutcome:
    offered = {tool.name: tool for tool in await tools.offered(config)}
    return await call_tool(offered[name], arguments, None, context)


def gone(pids: str) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in map(int, pids.split()))


async def test_a_process_sees_what_is_configured_and_belongs_to_one_session(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_TEST_PASSED", "yes")
    monkeypatch.setenv("MCP_TEST_SECRET", "no")
    tools = make()

    seen = json.loads((await call(tools, LOCAL, "local__environment", context())).content)
    counts = [(await call(tools, LOCAL, "local__count", context(session))).content for session in ("s1", "s1", "s2")]

    assert seen["variables"].keys() == {"PATH", "LANG", "TOKEN", "MCP_TEST_PASSED", "PERDURE_MCP"}
    assert seen["variables"]["TOKEN"] == "[secret]"
    assert (seen["cwd"], seen["leads"]) == (str(context().directory), True)
    assert counts == ["2", "3", "1"]


async def test_a_server_that_dies_floods_or_talks_nonsense_is_an_error_and_the_next_call_gets_a_new_one(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], caplog: pytest.LogCaptureFixture
) -> None:
    tools = make()
    said = {name: await call(tools, LOCAL, f"local__{name}", context()) for name in ("die", "flood", "nonsense", "leak")}

    assert all(outcome.is_error for outcome in said.values())
    unknown = "; whether the call had an effect is unknown"
    assert said["die"].content == f"the MCP server local is not available: it ended{unknown}"
    assert said["flood"].content == (
        f"the MCP server local is not available: it sent a message of more than 4,000,000 bytes{unknown}"
    )
    assert said["nonsense"].content == "the MCP server local answered with what is no result"
    assert said["leak"].content == "401 for the token [secret]"
    assert (await call(tools, LOCAL, "local__count", context())).content == "3"  # the one of nonsense and leak lives
    assert TOKEN not in caplog.text
    assert "MCP server local: it ended" in caplog.text


async def test_a_stopped_call_is_cancelled_and_its_process_killed_with_its_children(
    make: Callable[..., McpTools], context: Callable[..., ToolContext]
) -> None:
    tools = make()
    directory = context().directory
    hanging = asyncio.create_task(call(tools, LOCAL, "local__hang", context()))
    while not (directory / "pids").exists() or not (pids := (directory / "pids").read_text()):
        await asyncio.sleep(0.02)

    began = time.monotonic()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging

    assert time.monotonic() - began < 1.5
    assert gone(pids)
    assert (directory / "cancelled").exists()
    assert (await call(tools, LOCAL, "local__count", context())).content == "1"


async def test_a_stopped_call_leaves_those_beside_it_alone(
    make: Callable[..., McpTools], context: Callable[..., ToolContext]
) -> None:
    tools = make()
    assert (await call(tools, LOCAL, "local__count", context())).content == "1"
    stopped, other = (asyncio.create_task(call(tools, LOCAL, "local__silent", context())) for _ in range(2))
    await asyncio.sleep(0.1)
    assert (await call(tools, LOCAL, "local__count", context())).content == "4"

    stopped.cancel()
    await asyncio.wait({stopped})

    assert (await call(tools, LOCAL, "local__count", context())).content == "1"  # of a new process
    assert not (await asyncio.wait({other}, timeout=0.5))[0]
    other.cancel()


async def test_closing_ends_every_process(make: Callable[..., McpTools], context: Callable[..., ToolContext]) -> None:
    tools = make()
    hanging = asyncio.create_task(call(tools, LOCAL, "local__hang", context()))
    while not (context().directory / "pids").exists() or not (pids := (context().directory / "pids").read_text()):
        await asyncio.sleep(0.02)

    await tools.close()

    assert gone(pids)
    assert (await hanging).is_error


async def test_rested_connections_make_room(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = connections.Connections(idle_seconds=0.05, processes=1)
    tools = make()
    monkeypatch.setattr(tools, "_connections", pool)

    counts = [(await call(tools, LOCAL, "local__count", context(session))).content for session in ("s1", "s2", "s1")]
    assert counts == ["1", "1", "1"]
    await asyncio.sleep(0.3)
    assert (await call(tools, LOCAL, "local__count", context("s1"))).content == "1"
    busy = asyncio.create_task(call(tools, LOCAL, "local__silent", context("s2")))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(call(tools, LOCAL, "local__count", context("s1")))
    assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
    busy.cancel()
    assert (await waiting).content == "1"
    await pool.close()


async def test_thousands_of_tools_are_cut_down(make: Callable[..., McpTools]) -> None:
    tools = make(local=McpCommand(argv=(*PROGRAM, "3")), endless=McpCommand(argv=(*PROGRAM, "1000000")))

    names = [tool.name for tool in await tools.offered(LOCAL)]
    assert names == [f"local__tool_{number // 100:02}_{number % 100:02}" for number in range(200)]
    offered = await tools.offered(agent(endless={"type": "stdio"}))
    assert len(offered) == 200
    assert {len(tool.spec.description) for tool in offered} == {4_000}


def remote(server: WebServer, **more: Any) -> AgentConfig:
    return agent(web={"type": "url", "url": server.url, **more})


async def test_streamable_http_with_a_secret(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tools, config = make(web.host), remote(web, authorization_secret="web")

    offered = {tool.name: tool for tool in await tools.offered(config)}
    assert list(offered) == ["web__add", "web__leak", "web__picture", "web__wait"]
    assert (offered["web__add"].effect, offered["web__wait"].effect) == (Effect.READ, Effect.ONCE)
    assert {tool.policy for tool in offered.values()} == {"always_ask"}
    assert offered["web__add"].spec.input_schema["required"] == ["a", "b"]

    assert (await call(tools, config, "web__add", context(), a=2, b=3)).content == "5"
    assert (await call(tools, config, "web__add", context(), a="x")).is_error
    assert (
        "[an image, image/png, 5 bytes, which cannot be shown here]"
        in (await call(tools, config, "web__picture", context())).content
    )
    leaked = await call(tools, config, "web__leak", context())
    assert leaked.is_error
    assert "Bearer [secret] was not enough" in leaked.content
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("mcp.server")]
    assert TOKEN not in str(ours)


async def test_a_secret_in_a_header_of_its_own(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], web: WebServer
) -> None:
    tools, config = make(web.host), remote(web, headers={"X-Key": {"secret": "web"}})

    assert (await call(tools, config, "web__add", context(), a=2, b=3)).content == "5"
    assert "[secret] was not enough" in (await call(tools, config, "web__leak", context())).content
    assert TOKEN not in config.model_dump_json()


async def test_cancelling_reaches_a_server_elsewhere(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], web: WebServer
) -> None:
    tools, config = make(web.host), remote(web, authorization_secret="web", timeout_seconds=1)

    late = await call(tools, config, "web__wait", context())

    assert late.content == "web__wait took longer than 1 seconds; whether it had an effect is unknown"
    assert await asyncio.to_thread(web.stopped.wait, 5)


async def test_what_refuses_us_is_left_out_and_known(make: Callable[..., McpTools], web: WebServer) -> None:
    tools, config = make(web.host), remote(web)

    assert await tools.offered(config) == []
    (trouble,) = tools.troubles(config)
    assert trouble.refused
    assert trouble.message == "it answered 401: its credentials are missing or wrong"


async def test_private_addresses_are_refused(make: Callable[..., McpTools], web: WebServer) -> None:
    tools = make()

    async def lead_home(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)

    tools._network._resolve = lead_home  # pyright: ignore[reportPrivateUsage]
    by_name = agent(web={"type": "url", "url": f"http://mcp.example:{web.port}/mcp"})
    assert await tools.offered(by_name) == []
    assert [trouble.message for trouble in tools.troubles(by_name)] == ["it has no public address"]
    assert web.asked == 0

    assert tools.refusal(remote(web).mcp_servers[0]) == "Not a public address, nor one in mcp_allow_hosts."
    secret = agent(web={"type": "url", "url": "http://mcp.example/mcp", "authorization_secret": "web"})
    assert str(tools.refusal(secret.mcp_servers[0])).startswith("Secrets are sent over https only")


@pytest.mark.parametrize("old", [False, True], ids=["without sessions", "with sessions"])
async def test_tools_stay_while_their_server_is_away(
    make: Callable[..., McpTools], context: Callable[..., ToolContext], monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    monkeypatch.setattr(listing, "FRESH_SECONDS", 0)
    server = WebServer(old=old)
    tools, config = make(server.host), remote(server)
    assert await tools.offered(config) == []  # nobody is there
    assert [trouble.message for trouble in tools.troubles(config)] == ["no connection can be made to it"]
    monkeypatch.setattr(listing, "RETRY_SECONDS", 0)
    tools = make(server.host)
    with serving(server.app(), server.port):
        known = [tool.name for tool in await tools.offered(config)]
        assert (await call(tools, config, "web__add", context(), a=1, b=1)).content == "2"
    assert len(known) == 4

    began = time.monotonic()
    assert [tool.name for tool in await tools.offered(config)] == known
    assert time.monotonic() - began < 1
    away = await call(tools, config, "web__add", context(), a=1, b=1)
    assert away.content.startswith("the MCP server web is not available: ")
    for _ in range(2):  # each of which has forgotten the session
        with serving(server.app(), server.port):
            assert (await call(tools, config, "web__add", context(), a=1, b=1)).content == "2"


async def test_a_slow_server_holds_up_a_model_call_once_and_briefly(
    make: Callable[..., McpTools], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "WAIT_SECONDS", 0.2)
    server = WebServer(delay_seconds=0.5)
    tools, config = make(server.host), remote(server)
    with serving(server.app(), server.port):
        assert await tools.offered(config) == []
        assert tools.troubles(config)
        while not await tools.offered(config):
            await asyncio.sleep(0.1)
        assert not tools.troubles(config)
        asked = server.asked
        assert len(await tools.offered(config)) == 4
        assert server.asked == asked


async def test_a_worker_that_has_not_reached_a_server_calls_what_another_has_offered(
    make: Callable[..., McpTools], context: Callable[..., ToolContext]
) -> None:
    server = WebServer()
    tools, config = make(server.host), remote(server)
    assert await tools.offered(config) == []

    tool = tools.unlisted(config, "web", "add", Effect.READ)

    assert tool is not None
    assert (tool.name, tool.effect) == ("web__add", Effect.READ)
    assert (await call_tool(tool, {"a": 1, "b": 2}, None, context())).is_error
    with serving(server.app(), server.port):
        assert (await call_tool(tool, {"a": 1, "b": 2}, None, context())).content == "3"
    assert tools.unlisted(config, "other", "add", Effect.READ) is None


def test_a_secret_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(Invalid, match=r"mcp\.x\.secrets: there is no secret 'none'"):
        McpTools({"x": McpCommand(argv=("x",), secrets={"A": "none"})}, os.environ.get, Secrets({}), Network())
