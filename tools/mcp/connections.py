"""Connections to MCP servers, kept for the next call of the same session: a process takes a second to start.

A server may remember what it was told, so no two sessions share a connection.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

from mcp.client import Client, Transport
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, Implementation

from domain.errors import ToolFailed

T = TypeVar("T")

OPENING_SECONDS = 20.0
IDLE_SECONDS = 300.0
MAX_CONNECTIONS = 200
MAX_PROCESSES = 32
_CANCEL_SECONDS = 0.3
_STOP_SECONDS = 0.6
_CLOSE_SECONDS = 2.0
_US = Implementation(name="perdure", version="1")


class Wire(Protocol):
    """A way to a server, not yet opened. `fault`: why it does not work, in words that quote nothing."""

    fault: str | None
    session_gone: bool
    ended: asyncio.Event
    """Set by either side when it is over."""

    @property
    def local(self) -> bool:
        """Whether the server is a process of ours, which ends with the connection."""
        ...

    def open(self) -> Transport: ...


class Lost(ToolFailed):
    """There is no connection. `asked`: whether the server may have done what it was asked for."""

    def __init__(self, message: str, *, asked: bool, forgotten: bool = False) -> None:
        super().__init__(message)
        self.asked = asked
        self.forgotten = forgotten
        """The server knows the session no more: with a new one it may answer."""


class Connection:
    """One client, owned by a task of its own: cancel scopes must be left in the task that entered them."""

    def __init__(self, wire: Wire) -> None:
        self.local = wire.local
        self._wire = wire
        self._client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own())
        self._sent: set[asyncio.Task[object]] = set()
        self._spoiled = False
        self.users = 0
        self.resting: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it may be used for one more call."""
        return not self._spoiled and not self._owner.done() and not self._wire.ended.is_set()

    async def request(self, send: Callable[[Client], Awaitable[T]]) -> T:
        """Ask the server. Cancelled, it is told so (`notifications/cancelled`) and this returns within half a second.

        Raises Lost, MCPError, and whatever a nonsensical answer makes the package raise.
        """
        client = await asyncio.shield(self._client)
        asked = asyncio.create_task(_awaited(send(client)))
        self._sent.add(asked)
        asked.add_done_callback(self._answered)
        try:
            await asyncio.wait({asked, self._owner}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                await asyncio.wait({asked}, timeout=_CANCEL_SECONDS)
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.wait({asked}, timeout=_CANCEL_SECONDS)
                # Whether a process of ours heeds that nobody knows. Stop means stop: it ends with its last call.
                self._spoiled = self.local
        if asked.cancelled() or not asked.done():
            raise self._lost()
        try:
            return asked.result()
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                # Its owner knows why, in a moment.
                await asyncio.wait({self._owner}, timeout=_CANCEL_SECONDS)
                raise self._lost() from error
            if self._wire.session_gone:
                self._spoiled = True
                raise Lost("it has forgotten the session", asked=False, forgotten=True) from error
            raise

    async def close(self) -> None:
        """Returns when it is closed, a process of ours gone with all that it started."""
        self._wire.ended.set()
        if self.resting:
            self.resting.cancel()
        await asyncio.wait({self._owner}, timeout=_CLOSE_SECONDS)
        if not self._owner.done():
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=_CLOSE_SECONDS)

    def _lost(self) -> Lost:
        return Lost(self._wire.fault or "the connection was lost", asked=True)

    def _answered(self, asked: asyncio.Task[object]) -> None:
        self._sent.discard(asked)
        if not asked.cancelled():
            asked.exception()  # heard, though nobody may wait for it any more

    async def _own(self) -> None:
        opening = asyncio.timeout(OPENING_SECONDS)
        try:
            async with opening, Client(self._wire.open(), cache=None, client_info=_US) as client:
                opening.reschedule(None)
                self._client.set_result(client)
                await self._wire.ended.wait()
        except ToolFailed as error:
            self._wire.fault = error.message
        except TimeoutError:
            self._wire.fault = self._wire.fault or f"it did not greet within {OPENING_SECONDS:g} seconds"
        except Exception:  # noqa: BLE001  # whatever a server makes the package raise, in groups or not
            self._wire.fault = self._wire.fault or "it does not speak MCP"
        finally:
            self._wire.ended.set()
            if not self._client.done():
                self._client.set_exception(Lost(self._wire.fault or "the connection was closed", asked=False))
                self._client.exception()  # heard, though nobody may wait for it


class Connections:
    """At most `processes` of ours and `others` at a time; one that nobody uses is closed after `idle_seconds`."""

    def __init__(
        self, *, idle_seconds: float = IDLE_SECONDS, processes: int = MAX_PROCESSES, others: int = MAX_CONNECTIONS
    ) -> None:
        self._idle_seconds = idle_seconds
        self._most = {True: processes, False: others}
        self._freed = asyncio.Event()
        self._open: dict[Hashable, Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, key: Hashable, wire: Callable[[], Wire]) -> AsyncGenerator[Connection]:
        """The connection of that key, made where there is none; while all are busy, one is waited for."""
        while (connection := self._open.get(key)) is None or not connection.alive:
            made = wire()
            if self._has_room(made.local):
                connection = self._open[key] = Connection(made)
                break
            self._freed.clear()
            await self._freed.wait()
        connection.users += 1
        if connection.resting:
            connection.resting.cancel()
        try:
            yield connection
        finally:
            connection.users -= 1
            if connection.users == 0:
                self._freed.set()
                if connection.alive:
                    loop = asyncio.get_running_loop()
                    connection.resting = loop.call_later(self._idle_seconds, self._part, key, connection)
                else:
                    # Until a process of ours is gone a stopped call has not stopped.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_STOP_SECONDS):
                            await asyncio.shield(self._part(key, connection))

    async def close(self) -> None:
        for key, connection in tuple(self._open.items()):
            self._part(key, connection)
        while self._closing:
            await asyncio.wait(self._closing)

    def _part(self, key: Hashable, connection: Connection) -> "asyncio.Task[None]":
        if self._open.get(key) is connection:
            del self._open[key]
        task = asyncio.create_task(connection.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    def _has_room(self, local: bool) -> bool:
        """Whether there may be one more; for it, the one that has rested longest is closed."""
        same = [(key, connection) for key, connection in self._open.items() if connection.local == local]
        if len(same) < self._most[local]:
            return True
        resting = [(key, connection) for key, connection in same if connection.users == 0]
        if resting:
            self._part(*min(resting, key=lambda item: item[1].resting.when() if item[1].resting else 0))
        return bool(resting)


async def _awaited(work: Awaitable[T]) -> T:
    return await work
