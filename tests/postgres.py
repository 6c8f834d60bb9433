"""A throwaway Postgres for the tests: its own cluster in a temporary folder, gone afterwards.

What a crash would lose is deleted anyway, so everything that makes it safe and slow is off.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil
import psycopg
from psycopg import sql

from tests.ports import free_port

START_SECONDS = 30
STOP_SECONDS = 10
DEBIAN = Path("/usr/lib/postgresql")


class PostgresUnavailable(Exception):
    """There is no Postgres to start, or it did not start; the message says which and why."""


class PostgresServer:
    """One server process: `with PostgresServer() as server: url = server.create_database()`.

    Entering raises PostgresUnavailable when it is not installed or does not start.
    """

    def __init__(self) -> None:
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        # Not pytest's tmp_path: user postgres cannot enter root's, and the path of a socket is limited to 107 bytes.
        self.directory = Path(tempfile.gettempdir(), f"perdure-postgres-{secrets.token_hex(4)}")

    def __enter__(self) -> Self:
        binaries, user = find_binaries(), _user()
        self.directory.mkdir(0o700)
        if user is not None:
            shutil.chown(self.directory, user, user)
        try:
            self._initialise(binaries, user)
            self._start(binaries, user)
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def create_database(self) -> str:
        """Make a new empty database; its SQLAlchemy URL."""
        name = f"test_{secrets.token_hex(8)}"
        with self._connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        """End the server, whoever is still connected, and remove its files."""
        if self.process is not None:
            # Fast shutdown, which does not wait for clients: https://www.postgresql.org/docs/current/server-shutdown.html
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def halt(self) -> None:
        """End the server and keep its files: every connection breaks, and the next is refused."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(STOP_SECONDS)

    def resume(self) -> None:
        """Start it again, at the same address."""
        self._start(find_binaries(), _user())
        self._wait()

    def freeze(self) -> None:
        """Connections stay, and nothing answers: what a dead network looks like."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        for process in (found := psutil.Process(self.process.pid), *found.children()):
            process.send_signal(number)

    def _initialise(self, binaries: Path, user: str | None) -> None:
        made = subprocess.run(
            [binaries / "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            cwd=self.directory,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise PostgresUnavailable(f"initdb failed: {made.stderr.strip()}")

    def _start(self, binaries: Path, user: str | None) -> None:
        self.port = self.port or free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,  # every parallel test has a pool of its own
        }
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [binaries / "postgres", "-D", "data", *(f"--{name}={value}" for name, value in settings.items())],
                cwd=self.directory,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C on the tests must not stop the database before they have let go of it.
                start_new_session=True,
            )

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.directory / "log").read_text(errors="replace")
                    raise PostgresUnavailable(f"postgres did not start: {error}; its log: {log[-2000:]}") from error
            time.sleep(0.02)

    def _connect(self) -> psycopg.Connection:
        # By the socket, which is surely ours: another server on the same port would answer for one that could not start.
        return psycopg.connect(host=str(self.directory), port=self.port, user="postgres", dbname="postgres", autocommit=True)


def find_binaries() -> Path:
    """The folder of initdb and postgres: Debian's newest version (it keeps them off the path), else what the path has.

    Raises PostgresUnavailable.
    """
    if installed := sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])):
        return installed[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise PostgresUnavailable("Postgres is not installed: no initdb on the path (Debian: apt-get install postgresql)")


def _user() -> str | None:
    """Postgres refuses root; for root it runs as the user that comes with the package."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError as error:
        raise PostgresUnavailable("Postgres does not run as root, and there is no user postgres") from error
