"""A throwaway Postgres for the tests: its own cluster in a temporary folder, gone afterwards.

Safe settings are off: what a crash would lose is deleted anyway.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psycopg

START_SECONDS = 30
STOP_SECONDS = 10
DEBIAN = Path("/usr/lib/postgresql")


class PostgresUnavailable(Exception):
    """There is no Postgres to start, or it did not start; the message says which and why."""


class PostgresServer:
    """One server process. `with PostgresServer() as server: server.create_database()`.

    Raises PostgresUnavailable when it is not installed or does not start.
    """

    def __init__(self) -> None:
        self._binaries = _find_binaries()
        # Postgres refuses root, so that root's tests run it as the user that Debian's package made.
        self._as_user: Sequence[str] = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
        # Not pytest's tmp_path: user postgres cannot enter root's, and a socket's path is limited to 107 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="perdure-postgres-"))
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._initialise()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def create_database(self) -> str:
        """A new empty database; its SQLAlchemy URL."""
        name = f"test_{secrets.token_hex(8)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")  # pyright: ignore[reportArgumentType]  # typed as a literal; ours
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/{name}"

    def stop(self) -> None:
        """End the server and remove its files. Twice is once."""
        if self._process is not None and self._process.poll() is None:
            _end(self._pid(), self._process)
        self._process = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _initialise(self) -> None:
        if self._as_user:
            shutil.chown(self._directory, "postgres")
        command = [self._binaries / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run(
            [*self._as_user, *command, "--locale=C.UTF-8", "--no-sync"],
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise PostgresUnavailable(f"initdb failed: {made.stderr.strip()}")

    def _start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(self._directory),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            # Every parallel test has a pool of its own.
            "max_connections": "200",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._as_user, self._binaries / "postgres", "-D", self._data, *options],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the tests' terminal must not stop the database before the tests have let go of it.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None:
                    raise PostgresUnavailable(f"postgres ended at start: {self._log.read_text()}") from error
                if time.monotonic() > deadline:
                    raise PostgresUnavailable(f"postgres did not answer in {START_SECONDS} s: {error}") from error
            time.sleep(0.02)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host="127.0.0.1", port=self._port, user="postgres", dbname="postgres", autocommit=True)

    def _pid(self) -> int:
        """The server's own process id: as root, our child is runuser, which dies of SIGINT without passing it on."""
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            assert self._process is not None
            return self._process.pid


def _end(pid: int, process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown (SIGINT closes connections, https://www.postgresql.org/docs/current/server-shutdown.html), then by force."""
    os.kill(pid, 2)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.kill(pid, 9)
        process.kill()
        process.wait(STOP_SECONDS)


def _find_binaries() -> Path:
    """Debian keeps the server's programs off the path, one folder for each major version; the newest is taken."""
    if found := sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])):
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise PostgresUnavailable("Postgres is not installed: no initdb on the path or below /usr/lib/postgresql (apt-get install postgresql)")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
