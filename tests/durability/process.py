"""Perdure as real processes that tests may kill, all in one or each by itself, and a viewer that outlives them."""

import os
import signal
import subprocess
import sys
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
from tests.service import Frame, free_port, parse

ROOT = Path(__file__).parents[2]
KEY = "pk_" + "k" * 40
AUTH = {"Authorization": f"Bearer {KEY}"}

P = TypeVar("P", bound="Process")


class Process:
    """One process of ours that may be killed. Its output goes to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        self._output = output
        self.started_at = time.monotonic()
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=output.parent, env=dict(environment), stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def says(self, text: str, seconds: float = 30) -> float:
        """Wait until its output holds the text; returns how many seconds after its start."""
        while text not in self.output:
            assert self.process.poll() is None, self.output
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


class Up(Process):
    """`perdure up` or `perdure api`: what answers at `url`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: Path, url: str) -> None:
        super().__init__(command, environment, output)
        self.url = url

    def ready(self, seconds: float = 30) -> float:
        """Wait until it says that it is up; returns after how many seconds."""
        self.says("Perdure is up.", seconds)
        assert httpx2.get(f"{self.url}/readyz").status_code == 200
        return time.monotonic() - self.started_at


class _Folder:
    """A data folder of its own, and the processes that were started on it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
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
        self.started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.started):
            if process.process.poll() is None:
                process.kill()

    def command(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-c", "from cli import main; main()", *arguments)

    def output(self, name: str) -> Path:
        return self.folder / f"{name}{len(self.started)}.out"


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
        up = Up(self.command("up"), self.environment | environment, self.output("up"), self.url)
        self.started.append(up)
        return up


class Fleet(_Folder):
    """The shape of separate processes: one Temporal, and as many APIs and workers on one database as are started."""

    def __init__(self, folder: Path, database_url: str | None = None, **environment: str) -> None:
        self._temporal_port = free_port()
        self.temporal_address = f"127.0.0.1:{self._temporal_port}"
        more = {} if database_url is None else {"PERDURE_DATABASE_URL": database_url}
        super().__init__(folder, more | {"TEMPORAL_ADDRESS": self.temporal_address} | environment)
        self.data.mkdir(parents=True)
        self.ports: list[int] = []

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all APIs, whether they run or not: what a load balancer would know."""
        return tuple(f"http://127.0.0.1:{port}" for port in self.ports)

    def temporal(self) -> Process:
        return self._start(
            Process(command_line(self.data, self._temporal_port, None), self.environment, self.output("temporal"))
        )

    def migrate(self) -> None:
        """Bring the database to the newest schema, as a deployment does before anything else starts."""
        migrate = self._start(Process(self.command("migrate"), self.environment, self.output("migrate")))
        assert migrate.process.wait(60) == 0, migrate.output

    def api(self, port: int | None = None, **environment: str) -> Up:
        """Start an API at a port of its own, or in another one's place; `Up.ready` waits for it."""
        if port is None:
            port = free_port()
            self.ports.append(port)
        more = {"PERDURE_PORT": str(port)} | environment
        up = Up(self.command("api"), self.environment | more, self.output("api"), f"http://127.0.0.1:{port}")
        return self._start(up)

    def worker(self, *arguments: str, **environment: str) -> Process:
        """Start a worker; it `says("worker is ready")`."""
        return self._start(Process(self.command("worker", *arguments), self.environment | environment, self.output("worker")))

    def _start(self, process: P) -> P:
        self.started.append(process)
        return process


@dataclass
class Story:
    """What a viewer has been told over all its connections, checked at each frame."""

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
        if event["seq"] != len(self.durable) + 1 or frame.id != str(event["seq"]):
            self.faults.append(f"seq {event['seq']} under id {frame.id} after {len(self.durable)}")
        self.durable.append(event)
        if event["id"] in self.texts:
            whole = event["text"] if event["type"] == "agent.thinking" else event["content"][0]["text"]
            if not whole.startswith(self.texts[event["id"]]):
                self.faults.append(f"the pieces of {event['id']} are no beginning of it")

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
