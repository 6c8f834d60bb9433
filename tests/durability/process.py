"""Perdure as real processes that tests may kill, all in one or each by itself, and a viewer that outlives them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Self, TypeVar

import httpx2
import psutil

from commands.temporal_server import command_line
from tests.durability.nursery import ROOT, Child, nursery
from tests.ports import free_port
from tests.redis import server_command as redis_command
from tests.service import TLS, Frame, parse

KEY = "pk_" + "k" * 40
AUTH = {"Authorization": f"Bearer {KEY}"}
READY = "worker is ready"

P = TypeVar("P", bound="Process")


class Process:
    """One process that may be killed and started again. Its output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.folder = folder
        self.output_file = folder / f"{name}.out"
        self.start()

    def start(self) -> None:
        """Again, after a kill: `output` then is that of the new process."""
        self.started_at = time.monotonic()
        self.output_file.touch()
        self._begins = self.output_file.stat().st_size
        self.process = self.launch()

    def launch(self) -> "subprocess.Popen[bytes] | Child":
        with self.output_file.open("ab") as file:
            return subprocess.Popen(
                self.command, cwd=self.folder, env=dict(self.environment), stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.output_file.read_bytes()[self._begins :].decode(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def says(self, text: str, seconds: float = 30) -> float:
        """Wait until its output holds the text; returns how many seconds after its start."""
        while text not in self.output:
            assert self.alive, self.output
            assert time.monotonic() - self.started_at < seconds, self.output
            time.sleep(0.02)
        return time.monotonic() - self.started_at

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL to the process alone, as the kernel's memory killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> tuple[int, float]:
        """Its exit code, and after how many seconds it came."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        return code, time.monotonic() - began


class Perdure(Process):
    """`perdure COMMAND`. `prelude` is Python that it runs before it starts."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, prelude: str = ""
    ) -> None:
        self.prelude = prelude
        super().__init__(name, command, environment, folder)

    def launch(self) -> Child:
        return nursery().start(self.command, self.environment, self.folder, self.output_file, self.prelude)


class Up(Perdure):
    """`perdure up` or `perdure api`: what answers at `url`."""

    url: str

    def kill(self) -> None:
        """And wait for the Temporal that it had started, which dies with it: then its port is free."""
        children = self.children() if self.alive else []
        super().kill()
        deadline = time.monotonic() + 5
        while any(map(_lives, children)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def ready(self, seconds: float = 30) -> float:
        """Wait until it says that it is up and that all its parts answer; returns after how many seconds."""
        self.says("Perdure is up.", seconds)
        with httpx2.Client(verify=TLS) as http:
            while http.get(f"{self.url}/readyz").status_code != 200:
                assert time.monotonic() - self.started_at < seconds, self.output
                time.sleep(0.02)
        return time.monotonic() - self.started_at


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Folder:
    """A data folder of its own, and the processes that were started on it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], prelude: str = "") -> None:
        self.folder = folder
        self.data = folder / "data"
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PERDURE_", "TEMPORAL_", "ANTHROPIC_", "OPENAI_"))
        }
        self.environment = {
            **clean,
            "PYTHONPATH": str(ROOT),
            "PERDURE_DATA_DIR": str(self.data),
            "PERDURE_CONFIG": str(folder / "perdure.toml"),
            "PERDURE_BOOTSTRAP_KEY": KEY,
            **environment,
        }
        self._prelude = prelude
        self.started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.started):
            if process.alive:
                process.kill()

    def start(self, kind: str, command: Sequence[str]) -> Process:
        return self._started(Process(self._name(kind), command, self.environment, self.folder))

    def perdure(self, command: str, *arguments: str, **environment: str) -> Perdure:
        more = {**self.environment, **environment}
        return self._started(Perdure(self._name(command), (command, *arguments), more, self.folder, self._prelude))

    def start_up(self, command: str, url: str, **environment: str) -> Up:
        more = {**self.environment, **environment}
        up = Up(self._name(command), (command,), more, self.folder, self._prelude)
        up.url = url
        return self._started(up)

    def _started(self, process: P) -> P:
        self.started.append(process)
        return process

    def _name(self, kind: str) -> str:
        return f"{kind}{sum(process.name.startswith(kind) for process in self.started) + 1}"


class Machine(_Folder):
    """Ports of its own, on which `perdure up` is started again and again."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ports = {
            "PERDURE_PORT": str(self.port),
            "PERDURE_TEMPORAL_PORT": str(free_port()),
            "PERDURE_TEMPORAL_UI_PORT": str(free_port()),
        }
        super().__init__(folder, ports | environment)

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    def up(self, **environment: str) -> Up:
        """Start it; `Up.ready` waits for it."""
        return self.start_up("up", self.url, **environment)


class Fleet(_Folder):
    """The shape of separate processes: one Temporal, perhaps a Redis, and as many APIs and workers on one database as are
    started. `prelude` is Python that each of ours runs before it starts."""

    def __init__(
        self, folder: Path, database_url: str | None = None, *, redis: bool = False, prelude: str = "", **environment: str
    ) -> None:
        self._temporal_port, self._redis_port = free_port(), free_port()
        self.temporal_address = f"127.0.0.1:{self._temporal_port}"
        more = {"TEMPORAL_ADDRESS": self.temporal_address}
        if database_url is not None:
            more["PERDURE_DATABASE_URL"] = database_url
        if redis:
            more["PERDURE_REDIS_URL"] = f"redis://127.0.0.1:{self._redis_port}/0"
        super().__init__(folder, more | environment, prelude)
        self.data.mkdir(parents=True)
        self.ports: list[int] = []

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all APIs, whether they run or not: what a load balancer would know."""
        return tuple(f"http://127.0.0.1:{port}" for port in self.ports)

    def temporal(self, *, prepared: bool = True) -> Process:
        """`prepared`: with our search attributes, as a production Temporal has them after its first worker."""
        command = command_line(self.data, self._temporal_port, None)
        if not prepared:
            command = [part for part in command if part != "--search-attribute" and not part.endswith("=Keyword")]
        return self.start("temporal", command)

    def redis(self) -> Process:
        redis = self.start("redis", redis_command(self._redis_port))
        redis.says("Ready to accept connections")  # who finds none goes on without, for a while
        return redis

    def migrate(self) -> None:
        """Bring the database to the newest schema, as a deployment does before anything else starts."""
        migrate = self.perdure("migrate")
        assert migrate.process.wait(60) == 0, migrate.output

    def api(self, port: int | None = None, **environment: str) -> Up:
        """Start an API at a port of its own, in another one's place, or beside it: the kernel hands the connections out."""
        if port is None:
            port = free_port()
            self.ports.append(port)
        return self.start_up("api", f"http://127.0.0.1:{port}", **{"PERDURE_PORT": str(port)} | environment)

    def worker(self, *arguments: str, **environment: str) -> Perdure:
        """Start a worker; it `says(READY)`."""
        return self.perdure("worker", *arguments, **environment)

    def ready(self) -> None:
        """Wait until every API and every worker is."""
        for process in self.started:
            if isinstance(process, Up):
                process.ready(60)
            elif process.name.startswith("worker"):
                process.says(READY, 60)


@dataclass
class Story:
    """What a viewer has been told over all its connections, checked at each frame.

    `every_seq`: its stream shows the whole log. That of a run which delegates leaves out what its sub-agents write in between.
    """

    every_seq: bool = True
    frames: list[Frame] = field(default_factory=list[Frame])
    durable: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[str] = field(default_factory=list[str])
    done: bool = False

    def take(self, frame: Frame) -> None:
        self.frames.append(frame)
        match frame.event:
            case "done":
                self.done = True
            case "event_start":
                event_id = frame.data["event"]["id"]
                if event_id in self.texts:
                    self.faults.append(f"{event_id} opened twice")
                self.texts[event_id] = ""
            case "event_delta":
                content = frame.data["delta"]["content"]
                self.texts[frame.data["event_id"]] += content[content["type"]]
            case _:
                self._durable(frame)

    def _durable(self, frame: Frame) -> None:
        event = frame.data
        seq, last = int(frame.data["seq"]), self.last_seq
        if not (seq == last + 1 or (seq > last and not self.every_seq)) or frame.id != str(seq):
            self.faults.append(f"seq {seq} under id {frame.id} after {last}")
        self.durable.append(event)
        if event["id"] in self.texts:
            whole = event["text"] if event["type"] == "agent.thinking" else event["content"][0]["text"]
            if not whole.startswith(self.texts[event["id"]]):
                self.faults.append(f"the pieces of {event['id']} are no beginning of it")

    @property
    def last_seq(self) -> int:
        return int(str(self.durable[-1]["seq"])) if self.durable else 0

    @property
    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.durable]


class Watching:
    """Follows a run's stream in a thread, and whenever it breaks off, again from its Last-Event-ID: at the next API, if there
    are several."""

    def __init__(self, where: Machine | Fleet, run_id: str) -> None:
        self._urls = cycle(f"{url}/v1/runs/{run_id}/events/stream" for url in where.urls)
        self.story = Story()
        self.connections = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def until(self, type: str, count: int = 1, seconds: float = 40) -> float:
        """Wait until that many frames of the type have come; returns when, by the monotonic clock."""
        deadline = time.monotonic() + seconds
        while sum(frame.event == type for frame in self.story.frames) < count:
            seen = [frame.event for frame in self.story.frames if frame.event != "event_delta"]
            assert time.monotonic() < deadline, f"no {count} × {type} within {seconds} s: {seen}"
            time.sleep(0.005)
        return time.monotonic()

    def more(self, type: str, seconds: float = 40) -> float:
        return self.until(type, sum(frame.event == type for frame in self.story.frames) + 1, seconds)

    def _watch(self) -> None:
        while not self._stop.is_set() and not self.story.done:
            headers = dict(AUTH)
            if self.story.frames:
                headers["Last-Event-ID"] = self.story.frames[-1].id
            try:
                with httpx2.stream("GET", next(self._urls), headers=headers, timeout=15) as response:
                    if response.status_code != 200:
                        self.story.faults.append(f"HTTP {response.status_code}")
                        return
                    self.connections += 1
                    for frame in parse(response.iter_lines()):
                        self.story.take(frame)
                        if self._stop.is_set():
                            return
            except httpx2.HTTPError:
                time.sleep(0.05)
