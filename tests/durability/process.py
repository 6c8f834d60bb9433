"""`perdure up` as a real process that tests may kill, and a viewer that outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from tests.service import Frame, free_port, parse

ROOT = Path(__file__).parents[2]
KEY = "pk_" + "k" * 40
AUTH = {"Authorization": f"Bearer {KEY}"}
COMMAND = (sys.executable, "-c", "from commands.serve import up; up()")


class Machine:
    """A data folder and ports of its own, on which `perdure up` is started again and again."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.data = folder / "data"
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PERDURE_", "TEMPORAL_", "ANTHROPIC_", "OPENAI_"))
        } | {
            "PYTHONPATH": str(ROOT),
            "PERDURE_DATA_DIR": str(self.data),
            "PERDURE_PORT": str(self.port),
            "PERDURE_TEMPORAL_PORT": str(free_port()),
            "PERDURE_TEMPORAL_UI_PORT": str(free_port()),
            "PERDURE_CONFIG": str(folder / "perdure.toml"),
            "PERDURE_BOOTSTRAP_KEY": KEY,
            **environment,
        }
        self._started: list[Up] = []

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        for up in self._started:
            if up.process.poll() is None:
                up.kill()

    def up(self, **environment: str) -> "Up":
        """Start it; `Up.ready` waits for it."""
        output = self.folder / f"up{len(self._started)}.out"
        up = Up(self, output, self.environment | environment)
        self._started.append(up)
        return up


class Up:
    """One process of `perdure up`. Its output goes to a file."""

    def __init__(self, machine: Machine, output: Path, environment: Mapping[str, str]) -> None:
        self._output = output
        self._url = machine.url
        self.started_at = time.monotonic()
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                COMMAND, cwd=machine.folder, env=dict(environment), stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def ready(self, seconds: float = 30) -> float:
        """Wait until it says that it is up; returns after how many seconds."""
        while "Perdure is up." not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() - self.started_at < seconds, self.output
            time.sleep(0.02)
        assert httpx2.get(f"{self._url}/readyz").status_code == 200
        return time.monotonic() - self.started_at

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL to the process alone, as the kernel's memory killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals, seconds: float = 30) -> tuple[int, float]:
        """Its exit code, and after how many seconds it came."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        return code, time.monotonic() - began


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
    """Follows a run's stream in a thread, and whenever it breaks off, again from its Last-Event-ID."""

    def __init__(self, machine: Machine, run_id: str) -> None:
        self._url = f"{machine.url}/v1/runs/{run_id}/events/stream"
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
                with httpx2.stream("GET", self._url, headers=headers, timeout=15) as response:
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
