"""Perdure as separate processes, with a Temporal, a database and a Redis of its own, all of which may be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from commands.temporal_server import command_line
from tests.postgres import PostgresServer
from tests.redis import server_command as redis_command
from tests.service import free_port

ROOT = Path(__file__).parents[2]
KEY = "pk_" + "k" * 40
AUTH = {"Authorization": f"Bearer {KEY}"}
READY_SECONDS = 60


@dataclass
class Process:
    """One process that can be killed and started again. Its output goes to a file."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    starts: int = 0
    _running: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.starts += 1
        with self.output_file.open("ab") as output:
            self._running = subprocess.Popen(
                self.argv, cwd=self.folder, env=dict(self.environment), stdout=output, stderr=output, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process alone, as the kernel's memory killer would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, seconds: float = 40) -> int:
        """SIGTERM; its exit code."""
        self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        assert self._running is not None, f"{self.name} was never started"
        return self._running

    @property
    def output_file(self) -> Path:
        return self.folder / f"{self.name}.out"

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")


class Cluster:
    """`apis` processes behind one port, `workers` beside them. `prelude` is Python that each runs before it starts."""

    def __init__(
        self,
        folder: Path,
        *,
        apis: int = 2,
        workers: int = 2,
        postgres: bool = False,
        redis: bool = False,
        prelude: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port, self.temporal_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis_port = free_port() if redis else None
        self._postgres = postgres
        self._prelude = prelude
        self._counts = {"api": apis, "worker": workers}
        self._more = dict(environment or {})
        self._stack = ExitStack()
        self.processes: dict[str, Process] = {}
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "Cluster":
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self._stack.callback(self._end)
        self.environment = self._environment()
        temporal = command_line(self.folder / "data", self.temporal_port, None)
        self._add("temporal", temporal)
        if self.redis_port is not None:
            self._add("redis", redis_command(self.redis_port))
        for kind, count in self._counts.items():
            for number in range(1, count + 1):
                call = "api()" if kind == "api" else "worker(None)"
                code = f"{self._prelude}\nfrom commands.serve import {kind}\n{call}"
                self._add(f"{kind}{number}", [sys.executable, "-c", code])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def temporal_address(self) -> str:
        return f"127.0.0.1:{self.temporal_port}"

    def start(self, *names: str) -> None:
        """Start these, or all, in the order given."""
        for name in names or self.processes:
            self.processes[name].start()

    def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until an API says that all parts answer and every worker that it is ready."""
        workers = [p for p in self.processes.values() if p.name.startswith("worker") and p.starts]
        self.wait_for(self._answers, seconds, "the API is not ready")
        self.wait_for(lambda: all("worker is ready" in p.output for p in workers), seconds, "a worker is not ready")

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, what + "\n" + "\n".join(self._tails())
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False

    def _tails(self) -> list[str]:
        return [f"--- {p.name}\n{p.output[-1500:]}" for p in self.processes.values() if p.starts]

    def _add(self, name: str, argv: Sequence[str]) -> None:
        self.processes[name] = Process(name, argv, self.environment, self.folder)

    def _environment(self) -> dict[str, str]:
        foreign = ("PERDURE_", "TEMPORAL_", "ANTHROPIC_", "OPENAI_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        own = {
            "PYTHONPATH": str(ROOT),
            "PERDURE_DATA_DIR": str(self.folder / "data"),
            "PERDURE_PORT": str(self.port),
            "PERDURE_CONFIG": str(self.folder / "perdure.toml"),
            "PERDURE_BOOTSTRAP_KEY": KEY,
            "TEMPORAL_ADDRESS": self.temporal_address,
        }
        if self._postgres:
            own["PERDURE_DATABASE_URL"] = self._stack.enter_context(PostgresServer()).create_database()
        if self.redis_port is not None:
            own["PERDURE_REDIS_URL"] = f"redis://127.0.0.1:{self.redis_port}/0"
        return kept | own | self._more

    def _end(self) -> None:
        for process in reversed(self.processes.values()):
            if process.alive:
                process.kill()
