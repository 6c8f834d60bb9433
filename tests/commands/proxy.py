"""A way to the service that breaks."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Proxy:
    url: str = ""
    cuts_made: int = 0
    cut: Callable[[], None] = lambda: None
    """Reset every connection that there is."""


@contextmanager
def cutting_proxy(port: int, cuts: tuple[int, ...]) -> Generator[Proxy]:
    """Forwards to `port`; the first connections are reset after so many bytes of answers, later ones live."""
    proxy = Proxy()
    left = list(cuts)
    ready, stop = threading.Event(), asyncio.Event()
    open_writers: set[asyncio.StreamWriter] = set()
    loops: list[asyncio.AbstractEventLoop] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> bool:
        """Forward until the end, or until the budget is spent: then True."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(512):
                if budget is not None:
                    data = data[:budget]
                    budget -= len(data)
                writer.write(data)
                await writer.drain()
                if budget == 0:
                    return True
        return False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        up = asyncio.create_task(pump(reader, upstream_writer, None))
        open_writers.add(writer)
        try:
            if await pump(upstream_reader, writer, left.pop(0) if left else None):
                proxy.cuts_made += 1
                writer.transport.abort()
        except asyncio.CancelledError:
            pass  # the end of the proxy
        finally:
            open_writers.discard(writer)
            up.cancel()
            upstream_writer.close()
            writer.close()

    def abort() -> None:
        for writer in open_writers:
            writer.transport.abort()

    def cut() -> None:
        loops[0].call_soon_threadsafe(abort)

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        proxy.cut = cut
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)
