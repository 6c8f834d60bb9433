"""Runs a command with a limit on everything, in a bubblewrap sandbox unless the operator decided otherwise by name."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel

from domain.tools import Quota
from tools import bubblewrap, sandbox_process, seccomp
from tools.directory import RunDirectory
from tools.grep_process import RESERVED
from tools.sandbox_process import Limits, Order

UNPRIVILEGED = 65533
"""The user that commands run as where the service is root: one that Debian's policy gives to nobody."""
KILL_SECONDS = 5.0
TMP_ENTRIES = 20_000
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from tools.sandbox_process import main; main()"


@dataclass(frozen=True)
class ShellLimits:
    """Of one command with all that it starts."""

    seconds: float = 120.0
    cpu_seconds: int = 300
    memory_bytes: int = 2 << 30
    processes: int = 256


class Finished(BaseModel):
    """`sandbox_process.Report`, checked."""

    exit_code: int
    ended: str | None
    begun: bool
    head: str
    tail: str
    cut_bytes: int
    over: bool


class NoSandbox(Exception):
    """A command cannot be run in a sandbox here; why, and what the operator can do."""


class Sandbox:
    """`kind` none runs commands with the limits alone: they can read and do whatever the service's own user can.

    `private`: folders and files of the service's own, which no command in a sandbox sees, wherever they are.
    """

    def __init__(
        self,
        kind: Literal["bubblewrap", "none"] = "bubblewrap",
        limits: ShellLimits | None = None,
        private: Iterable[Path] = (),
    ) -> None:
        self.limits = limits or ShellLimits()
        self._kind = kind
        self._private = tuple(private)
        self._works = False

    async def run(self, command: str, directory: Path, quota: Quota, *, network: bool = False) -> Finished:
        """Run it with bash. Raises NoSandbox, before anything has run. Cancelled, it waits until the whole tree is gone."""
        await self.probe()
        return await self._run(command, directory, quota, network)

    async def probe(self) -> None:
        """Raises NoSandbox where a sandbox cannot work, which is found out by running something in one."""
        if self._works:
            return
        if sys.platform != "linux":
            raise NoSandbox("The shell needs Linux.")
        if self._kind == "bubblewrap":
            if shutil.which("bwrap") is None:
                raise NoSandbox("bubblewrap is not installed on the worker's machine (Debian: `apt install bubblewrap`).")
            with TemporaryDirectory() as empty:
                found = await self._run("echo it works", Path(empty) / "probe", Quota(), False)
            if found.exit_code != 0 or found.head != "it works\n":
                said = found.head.strip()[:500] or f"exit code {found.exit_code}"
                raise NoSandbox(
                    f"bubblewrap cannot make a sandbox on the worker's machine: {said}. It takes bubblewrap 0.8 or newer and a "
                    "kernel (and, in a container, a container) that lets ordinary users make user namespaces."
                )
        self._works = True

    async def _run(self, command: str, directory: Path, quota: Quota, network: bool) -> Finished:
        def prepare() -> None:
            with RunDirectory(directory) as found:
                found.reserve()

        await asyncio.to_thread(prepare)
        with self._order(command, directory, quota, network) as order:
            return await self._watched(order)

    @contextmanager
    def _order(self, command: str, directory: Path, quota: Quota, network: bool) -> Generator[Order]:
        limits = Limits(
            seconds=self.limits.seconds,
            cpu_seconds=self.limits.cpu_seconds,
            memory_bytes=self.limits.memory_bytes,
            processes=self.limits.processes,
            directory_bytes=quota.bytes,
            directory_entries=quota.entries,
            tmp_entries=TMP_ENTRIES,
        )
        order = Order(
            argv=["/bin/bash", "-c", command],
            environment={**bubblewrap.ENVIRONMENT, "HOME": str(directory)},
            directory=str(directory),
            hidden=RESERVED,
            user=None,
            descriptors=[],
            status=None,
            limits=limits,
        )
        if self._kind == "none":
            yield order
            return
        descriptors: list[int] = []

        def held(content: bytes) -> int:
            descriptor = os.memfd_create("sandbox")
            descriptors.append(descriptor)
            os.write(descriptor, content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

        try:
            user = UNPRIVILEGED if os.geteuid() == 0 else None
            program, status = seccomp.program(), held(b"")
            options = bubblewrap.options(
                sandbox_process.MOUNT_POINT if user else str(directory),
                hidden=RESERVED,
                private=self._private,
                network=network,
                stubs={path: held(text.encode()) for path, text in bubblewrap.STUBS.items()},
                filter=None if program is None else held(program),
                status=status,
            )
            bwrap, read = shutil.which("bwrap") or "bwrap", held("\0".join(options).encode())
            argv = [bwrap, *bubblewrap.command_line(read, command, self.limits.processes)]
            order["argv"], order["user"] = argv, user
            order["environment"] = dict(
                bubblewrap.ENVIRONMENT
            )  # bwrap's own, which the command can read: it names no path outside
            order["descriptors"], order["status"] = descriptors, status
            yield order
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _watched(self, order: Order) -> Finished:
        process = await asyncio.create_subprocess_exec(
            # No site packages, no user settings, no environment: nothing of the service is in reach of it.
            *(sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(sandbox_process.__file__).parents[1])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=order["descriptors"],
            env={},
            start_new_session=True,  # Ctrl-C at the service's terminal is not meant for it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            output = await process.stdout.read()
            await process.wait()
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        if not output:
            raise NoSandbox("the program that watches over the command did not come up")
        return Finished.model_validate_json(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Closing its input has it kill the command's tree. It is killed itself only where it does not come to that."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), KILL_SECONDS)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
