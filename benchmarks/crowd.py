"""Thousands of viewers that cost next to nothing, in a process of their own: `python -m benchmarks.crowd PORT KEY`.

Takes paths, one a line, on its standard input, then an empty line; opens a stream on each and says so. After that, for
every event that all of them have had, it says when the first and when the last of them had it (`time.monotonic_ns()`).
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.measure import allow_many_files
from benchmarks.service import Perdure, child_talking

EVENT = b"\nevent: session.updated\n"
AT_ONCE = 20
"""Streams that are being opened at a time: it is not the opening that is measured."""


class Crowd:
    """The other end: what the bench asks the process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    async def open(self, paths: list[str]) -> None:
        self._stdin.write("".join(f"{path}\n" for path in [*paths, ""]).encode())
        await self._say("open")

    async def seen(self) -> int:
        """When the last of all viewers had the next event."""
        return int(await self._say("seen"))

    async def _say(self, what: str) -> str:
        line = (await asyncio.wait_for(self._stdout.readline(), 300)).decode()
        word, _, rest = line.strip().partition(" ")
        if word != what:
            raise AssertionError(f"the viewers said {line!r} instead of {what!r}")
        return rest


@asynccontextmanager
async def crowd(service: Perdure, folder: Path) -> AsyncGenerator[Crowd]:
    argv = (sys.executable, "-m", "benchmarks.crowd", str(service.port), service.key)
    async with child_talking(argv, service.environment, folder) as process:
        yield Crowd(process)


class _Stream(asyncio.Protocol):
    """One viewer. It looks at what comes only as far as to recognise the event that it waits for."""

    def __init__(self, counting: "_Counting", request: bytes) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counting = counting
        self._request = request
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            self._counting.add(data.count(EVENT))
            return
        self._head += data
        if not self._head.startswith(b"HTTP/1.1 200 "[: len(self._head)]):
            self.opened.set_exception(ConnectionError(self._head.decode()))
        elif b": connected" in self._head:
            self.opened.set_result(None)
            self._head = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed before it was open"))
        else:
            _say("a stream ended")


class _Counting:
    def __init__(self) -> None:
        self.viewers = 0
        self._seen = 0

    def add(self, events: int) -> None:
        """Events come one at a time: the bench waits for the last viewer before it makes the next."""
        self._seen += events
        if events and self._seen == self.viewers:
            self._seen = 0
            _say(f"seen {time.monotonic_ns()}")


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


async def main(port: int, key: str) -> None:
    loop = asyncio.get_running_loop()
    paths: list[str] = []
    while path := (await asyncio.to_thread(sys.stdin.readline)).strip():
        paths.append(path)
    counting = _Counting()
    free = asyncio.Semaphore(AT_ONCE)

    async def open_one(path: str) -> asyncio.BaseTransport:
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        async with free:
            transport, stream = await loop.create_connection(lambda: _Stream(counting, request), "127.0.0.1", port)
            await stream.opened
        return transport

    transports = await asyncio.gather(*map(open_one, paths))
    counting.viewers = len(transports)
    _say("open")
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    allow_many_files()
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
