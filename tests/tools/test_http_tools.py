import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import JsonValue
from standardwebhooks import Webhook

from domain.agent_tools import HttpTool
from domain.agents import AgentConfig, ModelConfig
from domain.secrets import Secrets
from domain.tools import Effect, OfferedTool, ToolContext
from tools.http_tools import HttpTools, faults
from tools.public_http import PublicHttp
from tools.toolbox import ToolOutcome, call_tool

SECRET = "whsec_" + base64.b64encode(b"f00d" * 8).decode()
SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"title": {"type": "string"}},
    "required": ["title"],
    "additionalProperties": False,
}
INPUT: dict[str, JsonValue] = {"title": "Es raucht – \ud83d"}  # with half of a pair, as a model may well write


@dataclass
class Call:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    """Somebody's server on the loopback, and what it was sent."""

    answer: bytes
    port: int = 0
    calls: list[Call] = field(default_factory=list[Call])
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """When a caller has hung up without an answer."""

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"


def reply(status: str, body: bytes = b"", type: str | None = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"Content-Type: {type}"] if type else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def endpoint(answer: bytes = b"", host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[Endpoint]:
    """No answer: it never answers."""
    served = Endpoint(answer)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            served.calls.append(Call(head[0], headers, await reader.readexactly(int(headers["content-length"]))))
            if served.answer:
                writer.write(served.answer)
            else:
                await reader.read()
                served.left.set()
        writer.close()

    server = await asyncio.start_server(handle, host, port)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        yield served


def tool(url: str, **members: Any) -> HttpTool:
    given = {"name": "create_ticket", "description": "Open one.", "input_schema": SCHEMA, "url": url, **members}
    return HttpTool.model_validate(given)


async def offered(tool: HttpTool, http: PublicHttp, secrets: Mapping[str, str] | None = None) -> OfferedTool:
    config = AgentConfig(name="a", model=ModelConfig(id="demo:script"), tools=(tool,))
    (found,) = await HttpTools(http, Secrets(secrets or {})).offered(config)
    return found


async def run(
    served: Endpoint, context: ToolContext, input: Mapping[str, JsonValue] = INPUT, key: str = SECRET, **members: Any
) -> ToolOutcome:
    described = tool(f"http://{served.at}/tools/ticket?team=a", **members)
    found = await offered(described, PublicHttp(frozenset({served.at})), {"support": key})
    return await asyncio.wait_for(call_tool(found, input, None, context), 10)


async def test_a_call_is_signed_and_says_whose_it_is(context: ToolContext) -> None:
    async with endpoint(reply("200 OK", b'{"ticket": 7}')) as served:
        calls: list[dict[str, Any]] = [{}, {}, {"secret": "support"}]  # twice the same, as after a crash
        for members in calls:
            assert await run(served, context, **members) == ToolOutcome('{"ticket": 7}')

    first, again, signed = served.calls
    assert first.line == "POST /tools/ticket?team=a HTTP/1.1"
    assert (first.headers["host"], first.headers["content-type"]) == (served.at, "application/json")
    assert json.loads(first.body) == {
        "tool": "create_ticket",
        "tool_use_id": "toolu_1",
        "run_id": "run_1",
        "session_id": "sesn_1",
        "input": INPUT,
    }
    assert first.body == again.body
    for call in served.calls:
        assert (call.headers["webhook-id"], call.headers["idempotency-key"]) == ("toolu_1", "run_1/toolu_1")
    assert "webhook-signature" not in first.headers
    assert Webhook(SECRET).verify(signed.body, signed.headers)["input"] == INPUT


async def test_what_is_offered() -> None:
    found = await offered(tool("https://support.example/"), PublicHttp())
    assert (found.effect, found.policy, found.timeout_seconds, found.kind) == (Effect.ONCE, "always_ask", 30, "tool")
    assert (found.spec.name, found.spec.input_schema) == ("create_ticket", SCHEMA)

    said = tool("https://support.example/", effect="read", permission_policy={"type": "always_allow"})
    found = await offered(said, PublicHttp())
    assert (found.effect, found.policy) == (Effect.READ, "always_allow")


async def test_arguments_that_do_not_fit_are_not_sent(context: ToolContext) -> None:
    async with endpoint(reply("200 OK")) as served:
        outcome = await run(served, context, {"titel": "x"})
    assert (outcome.is_error, served.calls) == (True, [])
    assert outcome.content.startswith("invalid arguments\n")
    assert '"title" is a required property' in outcome.content


@pytest.mark.parametrize(
    ("answer", "is_error", "content"),
    [
        (reply("200 OK", "grüße".encode(), "text/plain"), False, "grüße"),
        (reply("201 Created", b'{"a":1}', "application/vnd.a+json; charset=utf-8"), False, '{"a":1}'),
        (reply("204 No Content", type=None), False, "204 No Content"),
        (reply("200 OK", b"<svg/>", "image/svg+xml"), True, "create_ticket answered 200 OK, but with image/svg+xml: only"),
        (reply("422 Nope", b'{"detail": "no such team"}'), True, 'create_ticket answered 422 Nope\n{"detail": "no such team"}'),
        (reply("500 Oops", b"x" * 5_000), True, "create_ticket answered 500 Oops\n" + "x" * 2_000),
        (
            reply("307 Elsewhere", Location="http://127.0.0.1:9/"),
            True,
            "create_ticket answered 307 Elsewhere, and redirects are not",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", True, "create_ticket: the answer broke off"),
        (b"no HTTP at all\r\n\r\n", True, "create_ticket: "),
        (reply("200 OK", b"no gzip", Content_Encoding="gzip"), True, "create_ticket is not valid gzip"),
    ],
)
async def test_answers(context: ToolContext, answer: bytes, is_error: bool, content: str) -> None:
    async with endpoint(answer) as served:
        outcome = await run(served, context)
    assert (outcome.is_error, outcome.content[: len(content)]) == (is_error, content)
    assert len(outcome.content) < 3_000
    assert len(served.calls) == 1


async def test_a_huge_answer_is_cut(context: ToolContext) -> None:
    async with endpoint(reply("200 OK", b"x" * 3_000_000)) as served:
        outcome = await run(served, context)
    assert not outcome.is_error
    assert len(outcome.content) < 101_000


@pytest.mark.parametrize(("effect", "unknown"), [("read", False), ("idempotent", True), ("once", True)])
async def test_an_answer_that_never_comes_whole(context: ToolContext, effect: str, unknown: bool) -> None:
    async with endpoint() as served:
        late = await run(served, context, effect=effect, timeout_seconds=0.3)
        await asyncio.wait_for(served.left.wait(), 10)
        served.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
        broken = await run(served, context, effect=effect)
    assert "took longer than 0.3 seconds" in late.content
    for outcome in (late, broken):
        assert outcome.is_error
        assert ("whether it had an effect is unknown" in outcome.content) == unknown


async def test_cancelling_hangs_up(context: ToolContext) -> None:
    async with endpoint() as served:
        calling = asyncio.create_task(run(served, context))
        while not served.calls:
            await asyncio.sleep(0.01)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await asyncio.wait_for(served.left.wait(), 10)


async def test_private_addresses_are_refused(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with endpoint(reply("200 OK", b"public")) as public, endpoint(reply("200 OK"), "127.0.0.2", public.port) as private:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
            found = await offered(tool(f"http://{host}:{public.port}/"), PublicHttp())
            outcome = await call_tool(found, INPUT, None, context)
            assert (outcome.is_error, public.calls) == (True, []), host
            assert "not a public address" in outcome.content

        monkeypatch.setattr("tools.public_http.is_public", "127.0.0.1".__eq__)  # stands for a public address
        found = await offered(tool(f"http://rebinding.test:{public.port}/"), PublicHttp(resolver=rebinding))
        assert (await call_tool(found, INPUT, None, context)).content == "public"
        assert "not a public address" in (await call_tool(found, INPUT, None, context)).content
        assert private.calls == []


@pytest.mark.parametrize("key", ["", "whsec_c2hvcnQ=", "not base64 at all, but long enough for it", None])
async def test_a_secret_that_is_gone_or_spoilt_is_not_shown(context: ToolContext, key: str | None) -> None:
    async with endpoint(reply("200 OK")) as served:
        described = tool(f"http://{served.at}/", secret="support")
        secrets = {} if key is None else {"support": key}
        found = await offered(described, PublicHttp(frozenset({served.at})), secrets)
        outcome = await call_tool(found, INPUT, None, context)
    assert outcome == ToolOutcome("create_ticket cannot be called: its secret 'support' is not usable any more", is_error=True)
    assert served.calls == []
    (fault,) = faults(described, Secrets(secrets), "/tools/0")
    assert fault.pointer == "/tools/0/secret"
    assert not key or key not in fault.detail


def test_what_can_never_be_called_has_a_pointer() -> None:
    schema = {"type": "object", "properties": {"a/b": {"type": "strin"}}}
    described = tool("http://127.0.0.1:99999/", secret="nope", input_schema=schema)
    found = faults(described, Secrets({"support": SECRET}), "/tools/3")
    assert [fault.pointer for fault in found] == [
        "/tools/3/url",
        "/tools/3/input_schema/properties/a~1b/type",
        "/tools/3/secret",
    ]
    assert "Known: support." in found[2].detail
    assert faults(tool("https://support.example/x?y", secret="support"), Secrets({"support": SECRET}), "") == []
