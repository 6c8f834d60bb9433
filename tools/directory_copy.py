"""A copy of a session's directory for another session. Blocking: use a thread."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from domain.errors import ToolFailed
from domain.tools import Quota
from tools.directory import explained
from tools.grep_process import FILE_FLAGS, FOLDER_FLAGS, Entry, walk

_CHUNK = 1 << 20


def copy_directory(source: Path, target: Path, quota: Quota) -> None:
    """Copy folders, regular files and links, the links as they are; without the file tools' receipts.

    Copies, never hard links: files are edited in place. Nothing is followed out of `source`, which a command may be changing
    meanwhile. Raises ToolFailed where it holds more than the quota, or the disk is full.
    """
    with explained("the session's files"):
        try:
            top = os.open(source, FOLDER_FLAGS)
        except FileNotFoundError:
            return
        try:
            target.mkdir(mode=0o700, parents=True)
            left = quota.bytes
            for count, entry in enumerate(walk(top), 1):
                with suppress(FileNotFoundError):  # it was deleted since it was listed
                    left -= _copy(entry, target / entry.path, left)
                if left < 0 or count > quota.entries:
                    raise ToolFailed("the session's directory holds more than its quota")
        finally:
            os.close(top)


def _copy(entry: Entry, place: Path, most: int) -> int:
    """How many bytes it was."""
    mode = entry.status.st_mode
    if stat.S_ISDIR(mode):
        place.mkdir(mode=0o700)
    elif stat.S_ISLNK(mode):
        place.symlink_to(os.readlink(entry.name, dir_fd=entry.folder))
    elif stat.S_ISREG(mode):
        with open(os.open(entry.name, FILE_FLAGS, dir_fd=entry.folder), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # swapped since it was listed
                return 0
            if status.st_size > most:
                return most + 1
            with open(place, "xb", buffering=0) as copy:
                os.fchmod(copy.fileno(), status.st_mode & 0o777)
                left = status.st_size  # and no more, while somebody appends to it
                while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                    copy.write(chunk)
                    left -= len(chunk)
            return status.st_size
    return 0
