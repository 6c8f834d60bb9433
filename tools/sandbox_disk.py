"""What a command may write: the run's directory watched against its quota, and folders of any depth removed.

Standard library only, for the process that tools/sandbox_process.py is.
"""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

DISK_SECONDS = 0.5
MAX_DEPTH = 50
"""As deep as the file tools see (tools/grep_process.py)."""
SPARE_DISK_BYTES = 1 << 30
"""What a command leaves free on the disk, or half of what was free when it began."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Ended(Exception):
    """The command is to be killed; why."""


class Used(NamedTuple):
    bytes: int
    entries: int


_LEEWAY = Used(1 << 20, 100)


def tree(pid: int) -> Iterator[int]:
    """All descendants of a process. Orphans are among them: they are handed up to the sandbox's first process, or to us."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        with suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
            for child in file.read().split():
                yield int(child)
                yield from tree(int(child))


class Disk:
    """The directory, which a command may fill as far as its quota goes."""

    def __init__(self, directory: str, hidden: str, quota: Used, tmp_entries: int, user: int | None) -> None:
        """`hidden`: a folder at its top that does not count. `user`: to whom it is handed over."""
        self._folder = os.open(directory, FOLDER)
        self._hidden, self._quota, self._tmp_entries, self._user = hidden, quota, tmp_entries, user
        if user is not None:
            os.chown(self._folder, user, user)
        before = self._measured(Used(sys.maxsize, sys.maxsize), tidy=True)
        # A command that begins in a full directory must be able to delete.
        bytes, entries = before.bytes + _LEEWAY.bytes, before.entries + _LEEWAY.entries
        self._most = Used(max(self._quota.bytes, bytes), max(self._quota.entries, entries))
        self._spare = min(SPARE_DISK_BYTES, self._free() // 2)
        self._next = 0.0

    def look(self, sandbox: int | None) -> None:
        """Raises Ended. `sandbox`: the sandbox's first process, through which its file systems can be seen."""
        began = time.monotonic()
        if began < self._next:
            return
        if self._free() < self._spare:
            raise Ended("full")
        used = self._measured(self._most)
        if used.bytes + _unlinked_bytes() > self._most.bytes:
            raise Ended("disk")
        if sandbox is not None:
            with suppress(OSError):
                # While bubblewrap is still at work, its /tmp is the machine's. Asked first: it does not go back to that.
                made = not os.path.samestat(os.stat(f"/proc/{sandbox}/root"), os.stat("/"))
                tmp = os.statvfs(f"/proc/{sandbox}/root/tmp")
                if made and tmp.f_files - tmp.f_ffree > self._tmp_entries:
                    raise Ended("files")
        # Looking costs what there is: never more than a tenth of the time.
        self._next = began + max(DISK_SECONDS, 10 * (time.monotonic() - began))

    def over(self) -> bool:
        """Whether more is in it than may be, once the command has ended."""
        used = self._measured(Used(sys.maxsize, sys.maxsize), tidy=True)
        return used.bytes > self._quota.bytes or used.entries > self._quota.entries

    def _measured(self, most: Used, tidy: bool = False) -> Used:
        try:
            return self._measure(self._folder, most, Used(0, 0), 1, tidy)
        except OSError:
            if tidy:
                raise
            return Used(0, 0)  # a folder went away while it was looked at

    def _measure(self, folder: int, most: Used, used: Used, depth: int, tidy: bool) -> Used:
        """Add up what is in a folder. Raises Ended above `most`, and where it is nested too deep.

        `tidy`, while no command runs: remove what is nested too deep, and hand all over to the user who is to have it.
        """
        for name in os.listdir(folder):
            if depth == 1 and name == self._hidden:
                continue
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError:
                continue  # it is gone
            if tidy and self._user is not None and status.st_uid != self._user:
                os.chown(name, self._user, self._user, dir_fd=folder, follow_symlinks=False)
            used = Used(used.bytes + status.st_size * stat.S_ISREG(status.st_mode), used.entries + 1)
            if used.bytes > most.bytes:
                raise Ended("disk")
            if used.entries > most.entries:
                raise Ended("files")
            if not stat.S_ISDIR(status.st_mode):
                continue
            if depth >= MAX_DEPTH:
                if not tidy:
                    raise Ended("depth")
                remove(name, folder)
                continue
            try:
                inner = _open_folder(name, folder)
            except OSError:
                continue
            try:
                used = self._measure(inner, most, used, depth + 1, tidy)
            finally:
                os.close(inner)
        return used

    def _free(self) -> int:
        found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize


def _open_folder(name: str, parent: int) -> int:
    """Also one that its owner has locked: what is in it counts."""
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent)
        return os.open(name, FOLDER, dir_fd=parent)


def _unlock(name: str, parent: int) -> None:
    """Never by its name: it may be a link by then, and lead out."""
    itself = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{itself}", 0o700)
    finally:
        os.close(itself)


def remove(name: str, parent: int) -> None:
    """Remove a folder with all that is in it, however deep that is nested: folders in it are moved up to be emptied."""
    pending, moved = [name], 0
    while pending:
        current = pending.pop()
        _unlock(current, parent)
        folder = os.open(current, FOLDER, dir_fd=parent)
        try:
            for entry in os.listdir(folder):
                try:
                    os.unlink(entry, dir_fd=folder)
                except IsADirectoryError:
                    _unlock(entry, folder)
                    pending.append(f".{name[:50]}.removed-{time.monotonic_ns()}-{moved}")
                    moved += 1
                    os.rename(entry, pending[-1], src_dir_fd=folder, dst_dir_fd=parent)
        finally:
            os.close(folder)
        os.rmdir(current, dir_fd=parent)


def _unlinked_bytes() -> int:
    """The size of files that have no name any more but are open: they fill the disk all the same."""
    found: dict[tuple[int, int], int] = {}
    for pid in tree(os.getpid()):
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("/memfd:"):
                        continue  # the sandbox's own: a command cannot make any
                    status = os.stat(f"/proc/{pid}/fd/{descriptor}")
                    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                        found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
