"""The three backends against a server that is strict about what each of them must be asked."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import pytest

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tools.search_backends import Brave, SearchBackend, SearXNG, Tavily
from tools.web_search import WebSearch, WebSearchArguments

KEY = "key-f00d"
QUERY = "how rivers freeze & why?"

Found = tuple[str, str, str]
RESULTS: tuple[Found, ...] = (
    ("Rivers &amp; ice", "https://ice.example/rivers?a=1&b=2", "Edges\n  first."),
    ("", "https://ice.example/untitled", ""),
    ("No web page", "javascript:alert(1)", "left out"),
    ("Long", "https://ice.example/long", "word " * 1_000),
    ("One too many", "https://ice.example/4", ""),
)


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Engine:
    """Answers as all three vendors do, and 400 to what they would not understand."""

    url: str = ""
    status: int = 200
    answer: bytes | None = None
    """Instead of the results."""
    silent: bool = False
    asked: list[Asked] = field(default_factory=list[Asked])

    def reply(self, asked: Asked) -> tuple[int, bytes]:
        if self.status != 200:
            return self.status, b'{"detail": {"error": "not with ' + KEY.encode() + b'"}}'
        faults = {"/search": _not_searxng if asked.method == "GET" else _not_tavily, "/res/v1/web/search": _not_brave}
        if asked.path not in faults:
            return 404, b"{}"
        if fault := faults[asked.path](asked):
            return 400, json.dumps({"detail": fault}).encode()
        if self.answer is not None:
            return 200, self.answer
        snippet = "description" if "brave" in asked.path or "/res/" in asked.path else "content"
        results = [{"title": t, "url": u, snippet: s, "score": 0.5, "engine": "x"} for t, u, s in RESULTS]
        found = {"web": {"type": "search", "results": results}} if "/res/" in asked.path else {"results": results}
        return 200, json.dumps({"query": QUERY, **found}).encode()


def _not_searxng(asked: Asked) -> str | None:
    if asked.query != {"q": QUERY, "format": "json"}:
        return f"the query is {asked.query}"
    return "a key" if {"authorization", "x-subscription-token"} & set(asked.headers) else None


def _not_brave(asked: Asked) -> str | None:
    wanted = {"q": QUERY, "count": "3", "result_filter": "web", "text_decorations": "false"}
    if asked.method != "GET" or asked.query != wanted:
        return f"{asked.method} with {asked.query}"
    return None if asked.headers.get("x-subscription-token") == KEY else "no token"


def _not_tavily(asked: Asked) -> str | None:
    if asked.headers.get("content-type") != "application/json" or asked.query:
        return "no JSON"
    if json.loads(asked.body) != {"query": QUERY, "max_results": 3, "search_depth": "basic"}:
        return "another body"
    return None if asked.headers.get("authorization") == f"Bearer {KEY}" else "no token"


@asynccontextmanager
async def engine(**settings: object) -> AsyncGenerator[Engine]:
    served = Engine(**settings)  # pyright: ignore[reportArgumentType]  # the tests' own members

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        path, _, query = target.partition("?")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        served.asked.append(Asked(method, path, dict(parse_qsl(query)), headers, body))
        if served.silent:
            await reader.read()
        else:
            status, answer = served.reply(served.asked[-1])
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n".encode() + answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield served


BACKENDS: dict[str, Callable[[str], SearchBackend]] = {
    "searxng": SearXNG,
    "brave": lambda url: Brave(KEY, 3, url),
    "tavily": lambda url: Tavily(KEY, 3, f"{url}/"),
}

each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def search(backend: SearchBackend, context: ToolContext) -> Awaitable[str]:
    return asyncio.wait_for(WebSearch(backend, 3).call(WebSearchArguments(query=QUERY), context), 10)


@each_backend
async def test_results_are_a_short_list(context: ToolContext, backend: Callable[[str], SearchBackend]) -> None:
    async with engine() as served:
        shown = await search(backend(served.url), context)

    first, second, third = shown.split("\n\n")
    assert first == "1. Rivers & ice\n   https://ice.example/rivers?a=1&b=2\n   Edges first."
    assert second == "2. (no title)\n   https://ice.example/untitled"
    assert third.startswith("3. Long\n   https://ice.example/long\n   word word")
    assert len(third) < 700
    assert len(served.asked) == 1


@each_backend
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "refuses"),
        (403, "refuses"),
        (429, "at its limit"),
        (432, "at its limit"),
        (500, "answered 500"),
        (302, "answered 302"),
    ],
)
async def test_refusals_are_said_without_the_key(
    context: ToolContext, backend: Callable[[str], SearchBackend], status: int, reason: str
) -> None:
    async with engine(status=status) as served:
        with pytest.raises(ToolFailed, match=reason) as raised:
            await search(backend(served.url), context)
    assert KEY not in raised.value.message


@each_backend
@pytest.mark.parametrize("answer", [b"<html>", b'{"results": 1, "web": 1}', b"[" * 100_000, b" " * 3_000_000, b""])
async def test_answers_that_are_none(context: ToolContext, backend: Callable[[str], SearchBackend], answer: bytes) -> None:
    async with engine(answer=answer) as served:
        with pytest.raises(ToolFailed, match="no search result"):
            await search(backend(served.url), context)


@each_backend
async def test_nothing_found(context: ToolContext, backend: Callable[[str], SearchBackend]) -> None:
    async with engine(answer=b'{"results": []}') as served:
        assert await search(backend(served.url), context) == "Nothing was found."


@each_backend
async def test_a_backend_that_is_away_or_silent(
    context: ToolContext, backend: Callable[[str], SearchBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.search_backends.ASK_SECONDS", 0.2)
    async with engine(silent=True) as served:
        with pytest.raises(ToolFailed, match="did not answer in time"):
            await search(backend(served.url), context)
    with pytest.raises(ToolFailed, match="cannot be reached"):
        await search(backend(served.url), context)


@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY}é"])
async def test_a_key_that_cannot_be_sent_is_not_shown(context: ToolContext, key: str) -> None:
    async with engine() as served:
        for backend in (Brave(key, 3, served.url), Tavily(key, 3, served.url)):
            with pytest.raises(ToolFailed) as raised:
                await search(backend, context)
            assert KEY not in raised.value.message
            assert raised.value.__cause__ is None
