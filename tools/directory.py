"""A run's own directory, from which no path leads out.

Paths are followed one component at a time from an open descriptor (`openat` with O_NOFOLLOW), never as strings: what was
checked is what is opened, also when somebody swaps a folder for a link in between. Blocking: call it in a thread.
"""

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self
from uuid import uuid4

from domain.errors import ToolFailed
from domain.tools import Quota
from tools.grep_process import FILE_FLAGS, FOLDER_FLAGS, MAX_DEPTH, MAX_FILE_BYTES, RESERVED, walk

MAX_WRITE_BYTES = 1_000_000
LOCK_SECONDS = 10.0
MAX_RECEIPTS = 1_000

_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is no folder (links are not followed)",
    errno.ELOOP: "it is a link, and links are not followed",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "permission denied",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSPC: "the disk is full",
    errno.ENXIO: "it is no regular file",
}


class Change(NamedTuple):
    content: bytes
    answer: str
    """What the model is told."""


def split(path: str) -> tuple[str, ...]:
    """The components of a path inside the directory; none for the directory itself.

    Raises ToolFailed for every path that could mean something outside.
    """
    if "\0" in path or len(path) > 1_000:
        raise ToolFailed("a path has at most 1,000 characters and no NUL")
    if path.startswith("/"):
        raise ToolFailed(f"{path}: paths are relative to your directory, such as notes/today.md")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ToolFailed(f"{path}: a path must not contain ..")
    if len(parts) > MAX_DEPTH:
        raise ToolFailed(f"{path}: more than {MAX_DEPTH} folders deep")
    # casefold: some file systems take .PERDURE for the same folder.
    if parts and parts[0].casefold() == RESERVED:
        raise ToolFailed(f"{path}: {RESERVED} is not yours to use")
    return parts


@contextmanager
def explained(path: str) -> Generator[None]:
    """Turn the system's errors into the model's, without the machine's own paths in them."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or os.strerror(error.errno or errno.EIO)
        raise ToolFailed(f"{path}: {reason}") from error


class RunDirectory:
    """Opens the directory, making it (mode 0700) where it is not there yet; close it by leaving the `with` block."""

    def __init__(self, path: Path, quota: Quota | None = None) -> None:
        self._quota = quota or Quota()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, FOLDER_FLAGS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def open(self, path: str) -> int:
        """Open a regular file or a folder for reading; the caller closes the descriptor. Raises ToolFailed."""
        parts = split(path)
        with explained(path), self._folder(parts[:-1]) as folder:
            if not parts:
                return os.dup(folder)
            return _open(folder, parts[-1], path, stat.S_ISREG, stat.S_ISDIR)

    def open_file(self, path: str) -> BinaryIO:
        """Open a regular file for reading. Raises ToolFailed."""
        parts = _file(path)
        with explained(path), self._folder(parts[:-1]) as folder:
            return open(_open(folder, parts[-1], path, stat.S_ISREG), "rb")

    def read(self, path: str) -> bytes:
        """A regular file's content. Raises ToolFailed, also above 10 MB."""
        with self.open_file(path) as file, explained(path):
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise ToolFailed(f"{path}: larger than {MAX_FILE_BYTES // 1_000_000} MB")
            return file.read(MAX_FILE_BYTES)

    def replace(self, path: str, key: str, change: Callable[[bytes | None], Change]) -> str:
        """Replace a file's content, once for each `key`; returns the answer of the time when it was done.

        `change` gets the old content, None where there is no file yet. The new content is staged beside a receipt, then renamed
        into place. That rename is at once the atomic replacement and the proof of it: a receipt whose staged file is gone was
        carried out, any other was not and starts afresh. Raises ToolFailed.
        """
        parts = _file(path)
        name = sha256(key.encode()).hexdigest()[:32]
        staged, receipt = f"{name}.new", f"{name}.done"
        with explained(path), self._locked(), self._folder((RESERVED,), create=True) as own:
            if _exists(own, receipt) and not _exists(own, staged):
                with open(os.open(receipt, FILE_FLAGS, dir_fd=own), "rb") as file:
                    return file.read().decode()
            old, mode = self._present(parts, path)
            content, answer = change(old)
            self._check_quota(path, len(content), len(old or b""))
            _write(own, staged, content, mode)
            _write(own, receipt, answer.encode(), 0o600)
            os.fsync(own)
            try:
                with self._folder(parts[:-1], create=True) as folder:
                    os.rename(staged, parts[-1], src_dir_fd=own, dst_dir_fd=folder)
                    os.fsync(folder)
            except OSError:
                if _exists(own, staged):
                    os.unlink(receipt, dir_fd=own)
                    os.unlink(staged, dir_fd=own)
                raise
            _prune(own)
            return answer

    def add(self, path: str, source: BinaryIO) -> None:
        """Put a copy there, unless something is there already. Raises ToolFailed."""
        parts = _file(path)
        with explained(path), self._locked(), self._folder((RESERVED,), create=True) as own:
            with suppress(FileNotFoundError), self._folder(parts[:-1]) as folder:
                if _exists(folder, parts[-1]):
                    return
            self._check_room(path, os.fstat(source.fileno()).st_size)
            staged = f"{uuid4().hex}.mount"
            created = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=own)
            try:
                with open(created, "wb") as file:
                    shutil.copyfileobj(source, file)
                with self._folder(parts[:-1], create=True) as folder, suppress(FileExistsError):
                    os.link(staged, parts[-1], src_dir_fd=own, dst_dir_fd=folder)
            finally:
                os.unlink(staged, dir_fd=own)

    def reserve(self) -> None:
        """Make the folder of the receipts, so that something can be mounted over it. Raises ToolFailed."""
        with explained(RESERVED), self._folder((RESERVED,), create=True):
            pass

    def _present(self, parts: tuple[str, ...], path: str) -> tuple[bytes | None, int]:
        """The file's content and permissions before a change."""
        try:
            with self._folder(parts[:-1]) as folder:
                descriptor = _open(folder, parts[-1], path, stat.S_ISREG)
        except FileNotFoundError:
            return None, 0o600
        with open(descriptor, "rb") as file:
            # One byte over the limit is enough for `change` to see that it is too large.
            return file.read(MAX_WRITE_BYTES + 1), os.fstat(descriptor).st_mode & 0o777

    def _check_quota(self, path: str, new_bytes: int, old_bytes: int) -> None:
        if new_bytes > MAX_WRITE_BYTES:
            raise ToolFailed(f"{path}: a file that is written has at most {MAX_WRITE_BYTES // 1_000_000} MB")
        self._check_room(path, new_bytes - old_bytes)

    def _check_room(self, path: str, more_bytes: int) -> None:
        quota, total, count = self._quota, more_bytes, 0
        for entry in islice(walk(self._descriptor), quota.entries):
            total, count = total + entry.status.st_size * stat.S_ISREG(entry.status.st_mode), count + 1
        if total > quota.bytes or count == quota.entries:
            most = f"{quota.bytes // 1_000_000:,} MB, {quota.entries:,} files and folders at most"
            raise ToolFailed(f"{path}: your directory is full ({most})")

    @contextmanager
    def _folder(self, parts: tuple[str, ...], create: bool = False) -> Generator[int]:
        descriptor = os.dup(self._descriptor)
        try:
            for part in parts:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                inner = os.open(part, FOLDER_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Keep others from writing here: two edits of one file at once would lose one of them."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ToolFailed("your directory is in use by something else; try again") from None
                time.sleep(0.02)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _file(path: str) -> tuple[str, ...]:
    parts = split(path)
    if not parts:
        raise ToolFailed(f"{path}: it is a folder")
    return parts


def _open(folder: int, name: str, path: str, *kinds: Callable[[int], bool]) -> int:
    """Open what is of one of the `kinds`: never a FIFO, socket or device, which could block or have effects."""
    descriptor = os.open(name, FILE_FLAGS, dir_fd=folder)
    mode = os.fstat(descriptor).st_mode
    if not any(kind(mode) for kind in kinds):
        os.close(descriptor)
        raise ToolFailed(f"{path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    return descriptor


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write(folder: int, name: str, content: bytes, mode: int) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with open(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)


def _prune(own: int) -> None:
    """Forget the older half of the receipts once there are many: only a call that is still being retried needs its own."""
    receipts = [name for name in os.listdir(own) if name.endswith(".done")]
    if len(receipts) <= MAX_RECEIPTS:
        return
    receipts.sort(key=lambda name: os.stat(name, dir_fd=own).st_mtime_ns)
    for receipt in receipts[: MAX_RECEIPTS // 2]:
        # The receipt first: one whose staged file is gone would say that the change was made.
        os.unlink(receipt, dir_fd=own)
        with suppress(FileNotFoundError):
            os.unlink(receipt.removesuffix(".done") + ".new", dir_fd=own)
