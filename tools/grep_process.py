"""Walking a run's directory, and the program that searches it with a regular expression.

The search runs as a process of its own (`grep` in tools/find.py starts this file by its path): a regular expression can
take longer than the universe is old and holds the interpreter lock while it does, so that only killing it stops it.
Standard library only: it starts in about 20 ms and sees neither our modules nor the service's environment.
"""

import json
import os
import re
import resource
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple, TypedDict

RESERVED = ".perdure"
"""The folder in each run's directory where the file tools keep their receipts. Invisible to the model."""
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: opening a FIFO that nobody writes to must not hang."""
MAX_DEPTH = 50
MAX_ENTRIES = 50_000
MAX_FILE_BYTES = 10_000_000
MAX_MATCHES = 200
MAX_LINE_CHARS = 500
MAX_CPU_SECONDS = 15
MAX_MEMORY_BYTES = 1 << 30


class Entry(NamedTuple):
    path: str
    """Relative to the run's directory."""
    folder: int
    """Descriptor of the folder it is in, open until the walk goes on."""
    name: str
    status: os.stat_result


class Order(TypedDict):
    descriptor: int
    pattern: str
    path: str


class Found(TypedDict):
    error: str | None
    matches: list[tuple[str, int, str]]
    skipped: int
    cut: bool


def walk(folder: int, path: str = "", depth: int = 1) -> Iterator[Entry]:
    """Everything below an open folder whose path is `path`, in order of name. Links are listed, never followed."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        below = f"{path}/{name}" if path else name
        if below == RESERVED:
            continue
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            continue  # deleted since it was listed
        yield Entry(below, folder, name, status)
        if not stat.S_ISDIR(status.st_mode) or depth >= MAX_DEPTH:
            continue
        try:
            inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        except OSError:
            continue
        try:
            yield from walk(inner, below, depth + 1)
        finally:
            os.close(inner)


def readable(path: str) -> str:
    """A path as text that can be encoded: names on disk may be any bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_binary(data: bytes) -> bool:
    return b"\0" in data[:8192]


def _contents(order: Order) -> Iterator[tuple[str, bytes | None]]:
    """Each file's path and bytes; None for bytes that are not searched."""
    top = order["descriptor"]
    if stat.S_ISREG(os.fstat(top).st_mode):
        yield order["path"], _text(os.dup(top))
        return
    for entry in islice(walk(top, order["path"]), MAX_ENTRIES):
        if stat.S_ISREG(entry.status.st_mode):
            try:
                descriptor = os.open(entry.name, FILE_FLAGS, dir_fd=entry.folder)
            except OSError:
                yield entry.path, None
                continue
            yield entry.path, _text(descriptor)


def _text(descriptor: int) -> bytes | None:
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        data = file.read(MAX_FILE_BYTES)
    return None if is_binary(data) else data


def _search(order: Order) -> Found:
    found = Found(error=None, matches=[], skipped=0, cut=False)
    try:
        pattern = re.compile(order["pattern"])
    except (re.error, OverflowError, RecursionError) as error:
        found["error"] = str(error)
        return found
    for path, data in _contents(order):
        if data is None:
            found["skipped"] += 1
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if pattern.search(line):
                if len(found["matches"]) == MAX_MATCHES:
                    found["cut"] = True
                    return found
                found["matches"].append((readable(path), number, line.rstrip("\r")[:MAX_LINE_CHARS]))
    return found


def _main() -> None:
    # The parent kills us in time; these hold when the parent itself was killed. Not every system has both.
    for limit, value in ((resource.RLIMIT_CPU, MAX_CPU_SECONDS), (resource.RLIMIT_AS, MAX_MEMORY_BYTES)):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))
    json.dump(_search(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    _main()
