"""A model server on loopback that says when it wrote each token and notices when a caller hangs up."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

TOKEN_SECONDS = 0.02
"""Fifty tokens a second, as a fast model writes."""


class ModelServer:
    """Chat completions (OpenAI's streaming API). The model's name is how many tokens it writes: `tokens-100`; `stall-3` then
    falls silent.

    Each token is the time at which it was written, `time.monotonic_ns()`, which all processes of a machine share.
    """

    def __init__(self) -> None:
        self.url = ""
        self.hung_up: asyncio.Queue[int] = asyncio.Queue()
        """When a caller closed its connection before the answer was whole."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["ModelServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            model: str = json.loads(await reader.readexactly(length))["model"]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            writing = asyncio.create_task(self._write(writer, model))
            hanging_up = asyncio.create_task(reader.read())
            await asyncio.wait({writing, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                self.hung_up.put_nowait(time.monotonic_ns())
            writing.cancel()
            hanging_up.cancel()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a connection that asked for nothing, or that broke off: nothing was measured on it
        finally:
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, model: str) -> None:
        kind, _, tokens = model.partition("-")
        for _ in range(int(tokens)):
            await asyncio.sleep(TOKEN_SECONDS)
            writer.write(_chunk({"content": f"{time.monotonic_ns()} "}, None))
        if kind == "stall":
            await asyncio.Event().wait()
        writer.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
        await writer.drain()


def _chunk(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "tokens", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()
