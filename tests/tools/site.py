"""A web server on the loopback for `web_fetch`, and a call of that tool."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from domain.tools import ToolContext
from tools.addresses import Resolver
from tools.web_fetch import WebFetch, WebFetchArguments

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A web server on the loopback, and what it was asked."""

    port: int
    requests: list[str] = field(default_factory=list[str])

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def site(
    answer: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Site]:
    handlers: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            handlers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                served.requests.append(request)
                await answer(request.split(" ")[1], writer)
                await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(handle, host, port, ssl=tls)
    served = Site(server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def page(body: bytes = b"hello", status: str = "200 OK", type: str = "text/plain; charset=utf-8", **headers: str) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", f"Content-Type: {type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return answer


def resolver(*answers: Sequence[str], asked: list[str] | None = None) -> Resolver:
    """Gives the answers one after the other, then the last for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        if asked is not None:
            asked.append(f"{host}:{port}")
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def fetch(tool: WebFetch, url: str, context: ToolContext) -> str:
    return await asyncio.wait_for(tool.call(WebFetchArguments(url=url), context), 10)
