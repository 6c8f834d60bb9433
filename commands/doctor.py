"""`perdure doctor`: what is there, what is missing, and what to do about it."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from commands.client import Client
from commands.context import Failed
from commands.temporal_server import binary
from domain.errors import Invalid, Unavailable
from settings import ConfigFile
from tools.mcp.config import McpCommand
from tools.sandbox import NoSandbox, Sandbox

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    what: str
    ok: bool
    detail: str
    needed: bool = True
    """False: Perdure works without it."""


class Ready(BaseModel):
    ready: bool
    database: str
    migrations: str
    temporal: str
    live_bus: str


class Info(BaseModel):
    version: str
    database: str
    temporal_ui: str | None


def examine(
    connect: Callable[[], Client],
    data_dir: Path,
    config: Callable[[], ConfigFile],
    variable: Callable[[str], str | None],
) -> Iterator[Finding]:
    """One finding after the other; the service's are left out when nothing answers. `config` reads perdure.toml."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", sys.version_info[:2] >= OLDEST_PYTHON, f"{found}; 3.11 or newer is needed")
    yield _temporal()
    yield _data(data_dir)
    yield _shell(config)
    try:
        yield from (_program(name, command, variable) for name, command in config().mcp.items())
    except Invalid as error:
        yield Finding("configuration", False, error.message)
    try:
        yield from _service(connect())
    except Failed as error:
        yield Finding("service", False, error.message)


def _temporal() -> Finding:
    try:
        return Finding("temporal", True, binary())
    except Unavailable as error:
        return Finding("temporal", False, error.message)


def _data(data_dir: Path) -> Finding:
    """The folder, or the nearest one above it that exists, can be written."""
    path = data_dir.resolve()
    nearest = next(above for above in (path, *path.parents) if above.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("data folder", False, f"{nearest} cannot be written: set PERDURE_DATA_DIR")
    return Finding("data folder", True, str(path) if nearest == path else f"{path} (made by `perdure up`)")


def _program(name: str, command: McpCommand, variable: Callable[[str], str | None]) -> Finding:
    """Whether the program is there: on this machine, which need not be a worker's."""
    found = command.program(variable)
    detail = found or f"{command.argv[0]} is not there: correct argv in perdure.toml, or pass PATH on in env"
    return Finding(f"mcp {name}", found is not None, detail, needed=False)


def _shell(config: Callable[[], ConfigFile]) -> Finding:
    """Whether commands of agents can be run here: what matters is the worker's machine."""
    what = "shell sandbox"
    try:
        shell = config().tools.shell
        asyncio.run(Sandbox(shell.sandbox, shell.limits).probe())
    except (Invalid, NoSandbox) as error:
        return Finding(what, False, str(error), needed=False)
    if shell.sandbox == "none":
        return Finding(what, False, "none, as perdure.toml says: commands can do what the service can", needed=False)
    return Finding(what, True, "bubblewrap works")


def _service(client: Client) -> Iterator[Finding]:
    url = client.connection.url
    status, _ = client.connection.probe("/livez")
    yield Finding("service", status == 200, f"{url} answers" if status == 200 else f"{url}/livez answered {status}")
    status, body = client.connection.probe("/readyz")
    try:
        ready = Ready.model_validate_json(body)
        parts = ready.model_dump(exclude={"ready"}).items()
        yield Finding("ready", ready.ready, ", ".join(f"{name.replace('_', ' ')} {found}" for name, found in parts))
    except ValidationError:
        yield Finding("ready", False, f"{url}/readyz answered {status} and not what Perdure answers")
        return
    info = client.connection.get("/v1/info", Info)
    ui = f", Temporal UI {info.temporal_ui}" if info.temporal_ui else ""
    yield Finding("version", True, f"{info.version}, database {info.database}{ui}")
    try:
        providers = client.providers()
    except Failed as error:
        # 403 is an answer to a key that is known.
        yield Finding("key", error.code == "forbidden", error.message)
        return
    yield Finding("key", True, "accepted")
    for provider in providers:
        detail = provider.kind if provider.available else f"{provider.kind}: {provider.error}"
        yield Finding(f"provider {provider.name}", provider.available, detail, needed=False)
