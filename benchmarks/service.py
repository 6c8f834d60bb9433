"""The service under measurement: the real `perdure up` or `perdure api` in a process of its own, reached over HTTP."""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.viewer import Viewer, watching
from commands.temporal_server import temporal_server
from storage.database import sqlite_url
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
READY_SECONDS = 60
NO_MODELS = "http://127.0.0.1:9/v1"
_CONFIG = """
[providers.bench]
kind = "openai_compatible"
base_url = "{model_server}"
[providers.command]
kind = "command"
argv = ["sh", "-c", "sleep 600 & echo $$ $!; wait"]
[tools]
modules = ["benchmarks.tools"]
[titles]
enabled = false
"""
_UP = (sys.executable, "-c", "from commands.serve import up; up()")
_API = (sys.executable, "-c", "from commands.serve import api; api()")
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""What the service sees of our environment: no vendor's key, no Temporal of somebody else's."""


@dataclass(frozen=True)
class Perdure:
    """A running service."""

    port: int
    temporal_address: str
    pid: int
    key: str
    http: httpx2.AsyncClient
    environment: Mapping[str, str]
    """What it was started with."""

    @property
    def database(self) -> str:
        return self.environment.get("PERDURE_DATABASE_URL") or sqlite_url(
            Path(self.environment["PERDURE_DATA_DIR"]) / "perdure.db"
        )

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        response = await self.http.post(path, json=body)
        response.raise_for_status()
        return response.json()

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.http.get(path)
        response.raise_for_status()
        return response.json()

    async def agent(self, name: str, model: str, *, tools: tuple[str, ...] = (), max_steps: int = 1000) -> str:
        """Create an agent; its id."""
        body = {"name": name, "model": model, "tools": list(tools), "limits": {"max_steps": max_steps}}
        return (await self.post("/v1/agents", body))["id"]

    async def session(self, agent: str) -> str:
        return (await self.post("/v1/sessions", {"agent": agent}))["id"]

    async def send(self, session: str, text: str) -> str:
        """Send a message; the id of the run that handles it."""
        return (await self.post(f"/v1/sessions/{session}/messages", {"content": text}))["run"]["id"]

    def watch(self, session: str) -> AbstractAsyncContextManager[Viewer]:
        return watching(self.port, self.key, f"/v1/sessions/{session}/events/stream")

    def watch_run(self, run: str) -> AbstractAsyncContextManager[Viewer]:
        return watching(self.port, self.key, f"/v1/runs/{run}/events/stream")


def script(tool: str, steps: int) -> str:
    """A message that has the scripted model call the tool once in every step."""
    return json.dumps({"script": [{"tools": [{"name": tool, "input": {}}]}] * steps})


@asynccontextmanager
async def perdure(folder: Path, model_server: str = NO_MODELS) -> AsyncGenerator[Perdure]:
    """`perdure up` on free ports with its data in `folder`, and its model server at that address."""
    environment = environment_in(folder, model_server)
    async with started(_UP, environment, folder) as service:
        yield service


@asynccontextmanager
async def temporal(folder: Path) -> AsyncGenerator[str]:
    """Temporal by itself, for processes that do not embed it; its address."""
    async with temporal_server(folder, free_port(), None) as address:
        yield address


@asynccontextmanager
async def api(
    folder: Path, temporal_address: str, database_url: str | None = None, *, key: str | None = None
) -> AsyncGenerator[Perdure]:
    """`perdure api`, nothing else in its process. `key`: what the first process on the same database has made."""
    environment = environment_in(folder) | {"TEMPORAL_ADDRESS": temporal_address}
    if key is not None:
        environment["PERDURE_BOOTSTRAP_KEY"] = key
    if database_url is not None:
        environment["PERDURE_DATABASE_URL"] = database_url
    async with started(_API, environment, folder) as service:
        yield service


@asynccontextmanager
async def started(argv: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> AsyncGenerator[Perdure]:
    """Start it, and wait until it is ready."""
    port, key = int(environment["PERDURE_PORT"]), environment["PERDURE_BOOTSTRAP_KEY"]
    address = environment.get("TEMPORAL_ADDRESS", f"127.0.0.1:{environment['PERDURE_TEMPORAL_PORT']}")
    log = f"perdure-{port}.log"
    async with child(argv, environment, folder, log) as process, _client(port, key) as http:
        await _ready(process, http, folder / log)
        yield Perdure(port, address, process.pid, key, http, environment)


def environment_in(folder: Path, model_server: str = NO_MODELS) -> dict[str, str]:
    """What a service with its data in `folder` is started with."""
    config = folder / "perdure.toml"
    config.write_text(_CONFIG.format(model_server=model_server))
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "PYTHONPATH": str(ROOT),
        "PERDURE_DATA_DIR": str(folder / "data"),
        "PERDURE_CONFIG": str(config),
        "PERDURE_PORT": str(free_port()),
        "PERDURE_TEMPORAL_PORT": str(free_port()),
        "PERDURE_TEMPORAL_UI_PORT": str(free_port()),
        "PERDURE_BOOTSTRAP_KEY": f"pk_{secrets.token_hex(24)}",
    }


@asynccontextmanager
async def child(
    argv: tuple[str, ...], environment: Mapping[str, str], folder: Path, log: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process that ends with the block, its output in a file of the folder."""
    with (folder / log).open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(environment), cwd=folder, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def child_talking(
    argv: tuple[str, ...], environment: Mapping[str, str], folder: Path
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process that is spoken with on its standard input and output; killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=dict(environment), cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _client(port: int, key: str) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, limits=limits)


async def _ready(process: asyncio.subprocess.Process, http: httpx2.AsyncClient, log: Path) -> None:
    for _ in range(READY_SECONDS * 10):
        if process.returncode is not None:
            break
        try:
            if (await http.get("/readyz")).is_success:
                return
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the service is not ready:\n{await asyncio.to_thread(log.read_text)}")
