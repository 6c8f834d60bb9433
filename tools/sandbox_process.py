"""The program that runs one command for the shell tool, watches it, and leaves nothing of it behind.

`Sandbox` in tools/sandbox.py starts it, writes an `Order` on its standard input and reads a `Report` from its standard output.
The input stays open: once it is closed, because the call was cancelled or the worker died, the command's whole tree is
killed. As a process of its own it outlives the worker for that moment, and its looking at /proc and at the directory holds up
nobody's event loop. Linux and the standard library only: it starts in about 20 ms and has nothing of the service in it.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import TypedDict

from tools.sandbox_disk import Disk, Ended, Used, tree

LOOK_SECONDS = 0.1
HEAD_BYTES = 20_000
TAIL_BYTES = 30_000
MOUNT_POINT = "/mnt"
"""Where a directory is found by a command that runs as another user, who cannot pass through the folders above it."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 38, 36
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


class Limits(TypedDict):
    seconds: float
    cpu_seconds: int
    """Of all processes together."""
    memory_bytes: int
    """Of all processes together."""
    processes: int
    """And threads."""
    directory_bytes: int
    directory_entries: int
    tmp_entries: int


class Order(TypedDict):
    argv: list[str]
    environment: dict[str, str]
    directory: str
    hidden: str
    """A folder at the top of the directory that does not count."""
    user: int | None
    """Run it as this user (and group): the directory is handed over, and mounted at `MOUNT_POINT`. Takes root."""
    descriptors: list[int]
    """Left open for the command."""
    status: int | None
    """A file in which bubblewrap writes what became of it (`--json-status-fd`)."""
    limits: Limits


class Report(TypedDict):
    exit_code: int | None
    ended: str | None
    """Which limit ended it: `time cpu memory processes disk files depth full`, or `stopped`; None: it ended by itself."""
    begun: bool
    """False: the sandbox could not be set up, and `head` says why."""
    head: str
    tail: str
    cut_bytes: int
    """Left out between the two."""
    over: bool
    """The directory holds more than it may."""


class _Output:
    """What was printed: its beginning and its end."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._cut = 0

    def add(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * TAIL_BYTES:
            self._shorten()

    def report(self) -> tuple[str, str, int]:
        self._shorten()
        if not self._cut:  # the boundary may be in the middle of a character
            return (self._head + self._tail).decode("utf-8", "replace"), "", 0
        return self._head.decode("utf-8", "replace"), self._tail.decode("utf-8", "replace"), self._cut

    def _shorten(self) -> None:
        if (more := len(self._tail) - TAIL_BYTES) > 0:
            del self._tail[:more]
            self._cut += more


def _look_at_processes(limits: Limits) -> None:
    """Raises Ended where they use too much together."""
    cpu = threads = resident = 0
    pids = list(tree(os.getpid()))
    for pid in pids:
        with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            cpu += sum(map(int, fields[11:15]))  # with that of children that are over
            threads += int(fields[17])
            resident += int(fields[21])
    if cpu / _TICKS > limits["cpu_seconds"]:
        raise Ended("cpu")
    if threads >= limits["processes"]:
        raise Ended("processes")
    # What is shared counts for each of them: only when it looks too much is it worth the slower, exact account.
    if resident * _PAGE > limits["memory_bytes"] and sum(map(_proportional, pids)) > limits["memory_bytes"]:
        raise Ended("memory")


def _proportional(pid: int) -> int:
    """Bytes of memory of a process, its share of what it shares."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _start(order: Order, output: int) -> int:
    """Fork and execute; the process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        for descriptor in order["descriptors"]:
            os.set_inheritable(descriptor, True)
        _limit(order["limits"])
        directory = order["directory"]
        if order["user"] is not None:
            _become(order["user"], directory)
            directory = MOUNT_POINT
        os.chdir(directory)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        os.execve(order["argv"][0], order["argv"], order["environment"])
    except BaseException as error:  # noqa: BLE001 - after the fork there is nobody else to say it
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(127)


def _limit(limits: Limits) -> None:
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"] + 1),  # of one process; all together are looked at
        # Only against what is too fast for us: this counts what is reserved, such as the stacks of threads.
        (resource.RLIMIT_DATA, 2 * limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["directory_bytes"]),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(name)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))
    # Where memory runs out all the same, this goes before the service does.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _become(user: int, directory: str) -> None:
    """Give up root for good, with the directory mounted where that user can reach it, for this process only."""
    libc = ctypes.CDLL(None, use_errno=True)
    for done in (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None),
        lambda: libc.mount(os.fsencode(directory), MOUNT_POINT.encode(), None, ctypes.c_ulong(_MS_BIND), None),
    ):
        if done():
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)} (root here may not mount: run the worker as an ordinary user)")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _first_process(order: Order) -> tuple[int | None, bool]:
    """The sandbox's first process, and whether the command in it has ended, as bubblewrap wrote it: a JSON object a line."""
    if order["status"] is None:
        return None, True
    found: dict[str, int] = {}
    for line in os.pread(order["status"], 10_000, 0).splitlines():
        with suppress(ValueError):
            found.update(json.loads(line))
    return found.get("child-pid"), "exit-code" in found


def _watch(order: Order, disk: Disk, pid: int, reading: int, output: _Output) -> None:
    """Until the command has ended. Raises Ended when it is to be."""
    deadline = time.monotonic() + order["limits"]["seconds"]
    child = os.pidfd_open(pid)
    waiting = [0, reading, child]
    next_look = 0.0
    while True:
        ready, _, _ = select.select(waiting, [], [], LOOK_SECONDS)
        if reading in ready:
            data = os.read(reading, 1 << 16)
            output.add(data)
            if not data:
                waiting.remove(reading)
        if child in ready:
            return
        if 0 in ready:
            raise Ended("stopped")
        if (now := time.monotonic()) > deadline:
            raise Ended("time")
        if now >= next_look:
            _look_at_processes(order["limits"])
            disk.look(_first_process(order)[0])
            next_look = time.monotonic() + LOOK_SECONDS


def _kill(pid: int) -> int:
    """Kill all that is left, and wait until it is gone; the wait status of the process `pid`."""
    ending = 0
    while True:
        for descendant in tree(os.getpid()):
            with suppress(OSError):
                os.kill(descendant, signal.SIGKILL)
        try:
            reaped, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ending
        if reaped == pid:
            ending = status
        if not reaped:
            time.sleep(0.005)


def run(order: Order) -> Report:
    """Run the command to its end, or until it is ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    limits = order["limits"]
    quota = Used(limits["directory_bytes"], limits["directory_entries"])
    disk = Disk(order["directory"], order["hidden"], quota, limits["tmp_entries"], order["user"])
    reading, writing = os.pipe()
    pid = _start(order, writing)
    os.close(writing)
    output, ended = _Output(), None
    try:
        _watch(order, disk, pid, reading, output)
    except Ended as reason:
        ended = str(reason)
    # First the command's own end, then what it left behind: killed before, it would count as a failure.
    status = _kill(pid)
    while data := os.read(reading, 1 << 16):
        output.add(data)
    head, tail, cut = output.report()
    code = os.waitstatus_to_exitcode(status)
    begun = ended is not None or _first_process(order)[1]
    return Report(exit_code=code, ended=ended, begun=begun, head=head, tail=tail, cut_bytes=cut, over=disk.over())


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):  # read without a buffer: the end of the input is waited for with select()
        piece = os.read(0, 1 << 16)
        if not piece:
            return
        line += piece
    order: Order = json.loads(line)
    json.dump(run(order), sys.stdout)
