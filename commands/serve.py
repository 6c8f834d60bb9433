"""`perdure up`, `api`, `worker` and `migrate`: composition roots of the service's processes."""

import asyncio
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from api.app import create_app, leave
from commands.banner import banner
from commands.bootstrap import bootstrap
from commands.lost import release_lost_activities
from commands.temporal_server import end_orphan, temporal_server
from domain.errors import DatabaseAway, Invalid, PerdureError, Unavailable
from settings import Settings, load_settings
from storage.schema import migrate as migrate_schema
from worker import Parts, connect, parts, working
from workflows import attributes
from workflows.client import RunClient

log = logging.getLogger("perdure")

DRAIN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Longer than clients and proxies keep an idle connection (httpx 5, most load balancers 60): where we close it first, it may be
in the moment in which a request comes over it."""
PORT_SECONDS = 3
"""How long a port may still be held by a process that was killed before this one."""
EMBEDDED_DRAIN_SECONDS = 1
"""Who types Ctrl-C does not want to wait, and a call that is handed back goes on at the next start."""


def up() -> None:
    """Everything in one process: Temporal (unless TEMPORAL_ADDRESS names one), API and worker."""
    _run(_up)


def api() -> None:
    """The API alone. Waits for the database and Temporal that the settings name."""
    _run(_api)


def worker(queues: str | None) -> None:
    """A worker alone; `queues` is `name=concurrency,…`."""
    only = _queues(queues)
    _run(lambda settings: _worker(settings, only))


def migrate() -> None:
    """Bring the database to the newest schema."""
    _run(_migrate)


async def _up(settings: Settings) -> None:
    data = _data_folder(settings)
    with _only_one(data):
        embedded = settings.temporal_address is None
        if embedded:
            await end_orphan(data)
        await _check_ports(settings, embedded)
        async with AsyncExitStack() as stack:
            everything = await stack.enter_async_context(parts(settings))
            await _database(everything)
            address, temporal_ui = str(settings.temporal_address), None
            if embedded:
                server = temporal_server(data, settings.temporal_port, settings.temporal_ui_port)
                address = await stack.enter_async_context(server)
                temporal_ui = f"http://127.0.0.1:{settings.temporal_ui_port}"
            client = await connect(settings, address)
            if embedded:
                await release_lost_activities(client)
            else:
                await attributes.ensure(client)
            # Last of what can fail: the key that it makes is shown once.
            first = await bootstrap(everything, data)
            runs = RunClient(client, settings.task_queue)
            await stack.enter_async_context(working(everything, client, drain_seconds=EMBEDDED_DRAIN_SECONDS))
            ui = f"{temporal_ui}/namespaces/{settings.temporal_namespace}" if temporal_ui else None
            await _serve(everything, runs, ui, lambda: banner(settings, data, temporal_ui, first))


async def _api(settings: Settings) -> None:
    data = _data_folder(settings)
    async with parts(settings, alone=False) as everything:
        await _database(everything)
        first = await bootstrap(everything, data)
        # Without Temporal it serves too: what it accepts is a row, and starts when Temporal is there.
        client = await connect(settings, _temporal_address(settings), lazy=True)
        runs = RunClient(client, settings.task_queue)
        # Several may serve one port: the kernel shares the connections out.
        await _serve(
            everything,
            runs,
            None,
            lambda: banner(settings, data, None, first),
            sockets=[_shared_socket(settings)],
            leave_seconds=settings.leave_seconds,
        )


async def _worker(settings: Settings, only: Mapping[str, int] | None) -> None:
    _data_folder(settings)
    async with parts(settings, alone=False) as everything:
        await _database(everything)
        client = await connect(settings, _temporal_address(settings))
        await attributes.ensure(client)
        stop = _on_signal()
        async with working(everything, client, only, drain_seconds=settings.drain_seconds):
            log.info("worker is ready")
            await stop.wait()


async def _migrate(settings: Settings) -> None:
    _data_folder(settings)
    async with parts(settings, alone=False) as everything:
        await _database(everything)


async def _database(everything: Parts) -> None:
    """Bring it to the newest schema, once it is there."""
    told = False
    while True:
        try:
            await migrate_schema(everything.database.engine)
            return
        except DatabaseAway as error:
            if not told:
                log.info("waiting for the database: %s", error.message)
            told = True
            await asyncio.sleep(0.5)


def _temporal_address(settings: Settings) -> str:
    return settings.temporal_address or f"127.0.0.1:{settings.temporal_port}"


def _shared_socket(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise _port_taken("PERDURE_PORT", settings.port, settings.host, error) from error
    return listening


def _port_taken(name: str, port: int, host: str, error: OSError) -> Invalid:
    return Invalid(f"Port {port} on {host} cannot be used ({error.strerror}): set {name} to a free one.")


async def _serve(
    everything: Parts,
    runs: RunClient,
    temporal_ui: str | None,
    ready: Callable[[], None],
    *,
    sockets: list[socket.socket] | None = None,
    leave_seconds: float = 0,
) -> None:
    app = create_app(
        database=everything.database,
        live=everything.live,
        client=runs,
        providers=everything.providers,
        tools=everything.tools,
        mcp=everything.mcp,
        secrets=everything.secrets,
        files=everything.files,
        routes=everything.routes,
        temporal_ui=temporal_ui,
        cors_origins=everything.settings.cors_origins,
    )
    settings = everything.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
    )
    server = _Server(config)
    stop = _on_signal()
    serving = asyncio.create_task(server.serve(sockets))
    stopping = asyncio.create_task(stop.wait())
    while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn offers no event for it
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    leave(app)
    await asyncio.wait({serving}, timeout=leave_seconds)
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: those would end the process before the worker has drained."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _run(main: Callable[[Settings], Coroutine[Any, Any, None]]) -> None:
    try:
        settings = load_settings()
        _log_to_stderr(settings)
        uvloop.run(main(settings))
    except PerdureError as error:
        sys.stderr.write(f"perdure: {error.message}\n")
        _leave(1)
    except KeyboardInterrupt:
        pass
    _leave(0)


def _leave(code: int) -> None:
    # Not by falling off the end: the Temporal SDK's threads now and then abort the interpreter while it shuts down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


def _data_folder(settings: Settings) -> Path:
    data = settings.data_dir.resolve()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data / ".write-test"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process that starts now may have been faster
    except OSError as error:
        raise Invalid(f"The data folder {data} cannot be used ({error.strerror}): set PERDURE_DATA_DIR.") from error
    return data


@contextmanager
def _only_one(data: Path) -> Generator[None]:
    """Hold the data folder. The kernel releases the lock with the process, so it can never be stale."""
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise Unavailable(f"Another Perdure (process {holder}) uses the data folder {data}.") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def _check_ports(settings: Settings, embedded: bool) -> None:
    """Raises Invalid for one that is taken, and stays so: what a killed process held is free as soon as all of it is gone."""
    wanted = [("PERDURE_PORT", settings.port, settings.host)]
    if embedded:
        wanted.append(("PERDURE_TEMPORAL_PORT", settings.temporal_port, "127.0.0.1"))
        wanted.append(("PERDURE_TEMPORAL_UI_PORT", settings.temporal_ui_port, "127.0.0.1"))
    deadline = time.monotonic() + PORT_SECONDS
    for name, port, host in wanted:
        while error := _refusal(host, port):
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise _port_taken(name, port, host, error)
            await asyncio.sleep(0.05)


def _refusal(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _queues(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise Invalid("--queues is written name=concurrency,… for example perdure=100,model.ollama=2")
        found[name] = int(number)
    return found


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"at": self.formatTime(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx2", "httpx", "alembic", "uvicorn.error", "sse_starlette", "temporalio.activity", "temporalio.worker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
