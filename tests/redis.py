"""A throwaway Redis (or Valkey) for the tests: in memory only, on a free port."""

import shutil
import socket
import subprocess
import time
from typing import Self

from tests.ports import free_port

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


def server_command(port: int) -> list[str]:
    assert PROGRAM is not None, "neither redis-server nor valkey-server is installed"
    return [PROGRAM, "--port", str(port), "--save", "", "--appendonly", "no"]


class RedisServer:
    """`kill` and `start` may follow each other; everything is lost in between, as it may be."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(server_command(self.port), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._listens():
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
