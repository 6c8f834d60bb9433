"""MCP servers behind streamable HTTP on the loopback, made with the `mcp` package, and one that speaks nonsense."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.ports import free_port

TOKEN = "tok-9f8e7d6c5b4a"
READS = ToolAnnotations(read_only_hint=True)


@dataclass
class WebServer:
    """`token`: what a caller has to show; None: nothing. `asked`: how many requests came in."""

    port: int = field(default_factory=free_port)
    token: str | None = None
    asked: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when a call of `wait` has been cancelled."""
    began: threading.Event = field(default_factory=threading.Event)
    delay_seconds: float = 0
    old: bool = False
    """Whether it only speaks the protocol as it was before 2026, with sessions."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/mcp"

    def app(self) -> ASGIApp:
        server = MCPServer("web")

        @server.tool(annotations=READS)
        def add(a: int, b: int) -> str:
            """Add two numbers."""
            return f"{a + b}"

        @server.tool()
        async def wait() -> str:
            """Wait to be cancelled."""
            self.began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.stopped.set()
                raise
            return "not cancelled"

        @server.tool()
        def picture() -> Image:
            """A picture."""
            return Image(data=b"12345", format="png")

        @server.tool()
        def leak() -> str:
            """Echo the credentials in an error."""
            raise ToolError(f"Bearer {self.token} was not enough")

        inner = server.streamable_http_app()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.asked += 1
                await asyncio.sleep(self.delay_seconds)
                headers = dict(scope["headers"])
                shown = headers.get(b"authorization", b"Bearer " + headers.get(b"x-key", b"")).decode()
                if self.old and b"2026" in headers.get(b"mcp-protocol-version", b""):
                    await send({"type": "http.response.start", "status": 400, "headers": []})
                    await send({"type": "http.response.body"})
                    return
                if self.token is not None and shown != f"Bearer {self.token}":
                    await send({"type": "http.response.start", "status": 401, "headers": []})
                    await send({"type": "http.response.body", "body": b"who are you"})
                    return
            await inner(scope, receive, send)

        return app


@contextmanager
def serving(app: ASGIApp, port: int) -> Generator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # of older ones
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
