"""Processes of ours without the three seconds of importing everything: forked from one that has imported it.

They are processes like any others, each with a session, an environment, an output file and an exit code of its own.
"""

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Child:
    """What `subprocess.Popen` is for processes that it starts."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._pidfd], [], [], timeout)[0]:
            self.returncode = self._nursery.ask({"reap": self.pid})
            os.close(self._pidfd)
        return self.returncode


class Nursery:
    """The process that has imported everything, and forks: one for each test process."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        code = "from tests.durability.nursery import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        atexit.register(self._close)

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: Path, prelude: str
    ) -> Child:
        """`perdure ARGUMENTS` in the folder, its output appended to the file. `prelude` is Python that it runs before that."""
        asked = {"arguments": list(arguments), "environment": dict(environment), "prelude": prelude}
        return Child(self, self.ask({**asked, "folder": str(folder), "output": str(output)}))

    def ask(self, request: Mapping[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def _close(self) -> None:
        self._process.communicate()


@cache
def nursery() -> Nursery:
    return Nursery()


def serve() -> None:
    """In the nursery's own process, which has one thread: that is what makes forking it safe."""
    gc.disable()
    import cli  # noqa: PLC0415  # the tests themselves need none of this
    import commands.serve  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]  # what takes the time

    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("reap"):
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        elif not (answer := os.fork()):
            _become(request)
            cli.main()
            return
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _become(request: Mapping[str, Any]) -> None:
    os.setsid()
    os.chdir(request["folder"])
    for path, flags, targets in ((os.devnull, os.O_RDONLY, (0,)), (request["output"], os.O_WRONLY | os.O_APPEND, (1, 2))):
        file = os.open(path, flags)
        for target in targets:
            os.dup2(file, target)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # what was read ahead of the nursery's own is not ours
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["perdure", *request["arguments"]]
    exec(request["prelude"], {})
