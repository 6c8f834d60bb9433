"""MCP over the standard input and output of a process: one JSON-RPC message a line (MCP 2025-11-25, basic/transports).

Not the `mcp` package's own transport: that hands variables of ours on, keeps a line of any length in memory, and logs what it
cannot read.
"""

import asyncio
import logging
import os
import signal
from asyncio import SubprocessTransport
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams  # the public Transport is made of it
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from domain.errors import ToolFailed
from tools.mcp.config import PATH
from tools.mcp.redaction import Redactor

MAX_MESSAGE_BYTES = 4_000_000
MAX_OUTPUT_BYTES = 32_000_000
"""Between two messages to it: a server that never stops printing must not keep the worker busy."""
STDERR_BYTES = 16_384
STDERR_CHARS = 2_048
"""Fewer are shown than are kept: where what is kept begins, a secret may be cut in half, and not be found."""
_MARK = "PERDURE_MCP"
_FAREWELL_SECONDS = 0.1
_GRACE_SECONDS = 0.3
_DYING_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What is started, and where. `environment` is all that it sees."""

    name: str
    program: str | None
    """Where it is; None where it is not."""
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    cwd: Path


class ProcessWire:
    """A server's process and its two pipes. `fault`: why it ended, for the model; `ended`: set when it has, or shall."""

    local = True

    def __init__(self, launch: Launch, redactor: Redactor) -> None:
        self.fault: str | None = None
        self.ended = asyncio.Event()
        self.session_gone = False
        self._launch = launch
        self._redactor = redactor
        self._printed = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[TransportStreams]:
        """Start it; at the end of the block it is gone, with all that it started. Raises ToolFailed."""
        child = await self._start()
        received, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, child, received)
            group.start_soon(self._write, child, to_send)
            group.start_soon(child.read_stderr)
            try:
                yield incoming, outgoing
            finally:
                try:
                    with anyio.CancelScope(shield=True):
                        await child.end()
                finally:
                    child.kill()
                    group.cancel_scope.cancel()
                    if self.fault:
                        tail = self._redactor.text(child.tail)[-STDERR_CHARS:]
                        log.warning("MCP server %s: %s; its standard error ends: %s", self._launch.name, self.fault, tail)

    async def _start(self) -> "_Child":
        launch = self._launch
        if launch.program is None:
            raise ToolFailed(f"the MCP server {launch.name} cannot be started: its program is not there")
        mark = f"{_MARK}={uuid4().hex}"
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: SubprocessStreamProtocol(limit=MAX_MESSAGE_BYTES, loop=loop),
                launch.program,
                *launch.arguments,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=launch.cwd,
                env={"PATH": PATH, "LANG": "C.UTF-8", **launch.environment, **dict([mark.split("=")])},
                start_new_session=True,
            )
        except OSError as error:
            raise ToolFailed(f"the MCP server {launch.name} cannot be started: {error.strerror}") from error
        return _Child(Process(transport, protocol, loop), transport, mark.encode())

    async def _read(self, child: "_Child", received: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        async with received:
            try:
                while line := await child.line():
                    self._printed += len(line)
                    if self._printed > MAX_OUTPUT_BYTES:
                        self.fault = "it printed without end"
                        return
                    # What is no message is skipped: many programs greet on standard output.
                    with suppress(ValueError):
                        await received.send(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))
                if not self.ended.is_set():
                    self.fault = "it ended"
            except ValueError:
                self.fault = f"it sent a message of more than {MAX_MESSAGE_BYTES:,} bytes"
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                pass  # we have gone
            finally:
                self.ended.set()

    async def _write(self, child: "_Child", to_send: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async with to_send:
            with suppress(ConnectionError, anyio.ClosedResourceError):
                async for message in to_send:
                    self._printed = 0
                    await child.send(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        self.ended.set()


class _Child:
    """A started process. Its descendants are found by their group and by `mark`, a variable that they inherit."""

    def __init__(self, process: Process, transport: SubprocessTransport, mark: bytes) -> None:
        self._process = process
        self._transport = transport
        self._mark = mark
        self._tail = b""

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace").strip()

    async def line(self) -> bytes:
        """Empty at the end. Raises ValueError for one that is too long."""
        assert self._process.stdout
        return await self._process.stdout.readline()

    async def send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read_stderr(self) -> None:
        assert self._process.stderr
        while chunk := await self._process.stderr.read(65_536):
            self._tail = (self._tail + chunk)[-STDERR_BYTES:]

    async def end(self) -> None:
        """Close its input, then ask it to end, then kill what is left. Returns when nothing is."""
        assert self._process.stdin
        self._process.stdin.close()
        await self._gone(_FAREWELL_SECONDS)
        self._signal(signal.SIGTERM)
        await self._gone(_GRACE_SECONDS)
        self._signal(signal.SIGKILL)
        await self._gone(_DYING_SECONDS)

    def kill(self) -> None:
        """Once more, where `end` was broken off; and let go of the pipes, which somebody may hold open for ever."""
        self._signal(signal.SIGKILL)
        self._transport.close()

    def _signal(self, number: int) -> None:
        if self._transport.get_returncode() is None:  # later its number may be somebody else's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
        for pid in self._descendants():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    async def _gone(self, within_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        patience = loop.time() + within_seconds
        while loop.time() < patience and self._lives():  # noqa: ASYNC110  # nobody announces the end of a tree
            await asyncio.sleep(0.02)

    def _lives(self) -> bool:
        return self._transport.get_returncode() is None or bool(self._descendants())

    def _descendants(self) -> list[int]:
        found: list[int] = []
        with suppress(FileNotFoundError):  # no Linux
            for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
                with suppress(OSError):
                    if self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        found.append(pid)
        return found
