"""A viewer of an event stream that costs next to nothing, so that twenty of them measure the service and not themselves."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seen:
    """An event and when it arrived, `time.monotonic_ns()`."""

    at: int
    event: str
    data: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.data)


class Viewer:
    """One open stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._pending = b""
        self._arrived: deque[Seen] = deque()
        """Several come at once: who leaves off in the middle of them finds the others when they read on."""

    async def frames(self) -> AsyncIterator[Seen]:
        """Every event as it arrives, until the stream ends."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if not (size := int(await self._reader.readline(), 16)):
                return
            self._pending += await self._reader.readexactly(size)
            at = time.monotonic_ns()
            await self._reader.readexactly(2)  # the end of the chunk
            *whole, self._pending = self._pending.split(b"\n\n")
            for frame in whole:
                fields = dict(line.split(": ", 1) for line in frame.decode().split("\n") if ": " in line and line[0] != ":")
                if "data" in fields:
                    self._arrived.append(Seen(at, fields["event"], fields["data"]))

    async def until(self, *events: str) -> Seen:
        """Read on to the first event of one of these types."""
        async for seen in self.frames():
            if seen.event in events:
                return seen
        raise EOFError(f"the stream ended without {' or '.join(events)}")


@asynccontextmanager
async def watching(port: int, key: str, path: str) -> AsyncGenerator[Viewer]:
    """Open the stream; returns once the service has answered and its first bytes are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0] or b"chunked" not in head.lower():
            raise ConnectionError(head.decode())
        size = int(await reader.readline(), 16)
        await reader.readexactly(size + 2)  # `: connected`
        yield Viewer(reader)
    finally:
        writer.close()
