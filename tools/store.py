"""The folder that API and workers share: each session's directory, and copies of files that nothing changes any more.

`WORKSPACE/SESSION` is a session's directory, `WORKSPACE/stored/ID` an uploaded file or an artifact. Blocking: use a thread.
"""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from domain.errors import ToolFailed
from domain.tools import Quota
from tools.directory import RunDirectory, explained, split
from tools.directory_copy import copy_directory
from tools.sandbox_disk import FOLDER, remove

STORED = "stored"
_CHUNK = 1 << 20
_MAX_NAME_BYTES = 255
"""Of file systems. An uploaded file's own name may have as many characters."""


class Kept(NamedTuple):
    size_bytes: int
    sha256: str


class FileStore:
    def __init__(self, root: Path, quota: Quota, max_file_bytes: int) -> None:
        self.root = root
        self.quota = quota
        self.max_file_bytes = max_file_bytes
        """Of an uploaded file."""

    def directory(self, workspace_id: str, session_id: str) -> Path:
        """The session's own, which its runs share."""
        return self.root / workspace_id / session_id

    def path(self, workspace_id: str, id: str) -> Path:
        """Where the stored file of that id is."""
        return self.root / workspace_id / STORED / id

    def mount(self, workspace_id: str, session_id: str, file_id: str, path: str) -> None:
        """Put a stored file into a session's directory, unless something is there already. Raises ToolFailed."""
        with (
            explained(file_id),
            open(self.path(workspace_id, file_id), "rb") as source,
            RunDirectory(self.directory(workspace_id, session_id), self.quota) as directory,
        ):
            directory.add(path, source)

    def copy_directory(self, workspace_id: str, source_id: str, session_id: str) -> None:
        """Give a new session a copy of what is in another's directory. Raises ToolFailed."""
        copy_directory(self.directory(workspace_id, source_id), self.directory(workspace_id, session_id), self.quota)

    def link_stored(self, workspace_id: str, id: str, other_id: str) -> None:
        """Keep a stored file under one more id; one that is gone stays gone. A hard link: nothing ever changes it."""
        source, target = self.path(workspace_id, id), self.path(workspace_id, other_id)
        try:
            os.link(source, target)
            os.utime(target)  # what is old and in no row yet is cleaned up
        except FileNotFoundError:
            pass
        except OSError:  # not every file system has links
            with open(source, "rb") as file:
                keep(file, target, self.quota.bytes)

    def remove_directory(self, workspace_id: str, session_id: str) -> None:
        """The session's directory with all that is in it, however deep."""
        with suppress(FileNotFoundError):
            _remove(self.root / workspace_id, session_id)

    def remove_stored(self, workspace_id: str, ids: list[str]) -> None:
        for id in ids:
            self.path(workspace_id, id).unlink(missing_ok=True)

    def remove_session(self, workspace_id: str, session_id: str, artifact_ids: list[str]) -> None:
        """Of a session that was deleted: its artifacts and its directory. What this leaves, nothing names any more: it is
        tidied away."""
        with suppress(OSError):
            self.remove_stored(workspace_id, artifact_ids)
        with suppress(OSError):
            self.remove_directory(workspace_id, session_id)


def store_beside(directory: Path) -> Path:
    """Where the stored files of a session's workspace are, by the session's directory."""
    return directory.parent / STORED


def keep(source: BinaryIO, target: Path, most_bytes: int) -> Kept:
    """Copy to a place that is written once. Raises ToolFailed above `most_bytes`."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{uuid4().hex}")
    digest, size = sha256(), 0
    try:
        with open(staged, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > most_bytes:
                    raise ToolFailed(f"larger than {most_bytes >> 20:,} MB")
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(target)
    finally:
        staged.unlink(missing_ok=True)
    return Kept(size, digest.hexdigest())


def mount_path(said: str | None, name: str) -> str:
    """Where in a session's directory a file goes. Raises ToolFailed for a path that is none.

    The SDK's own `/mnt/session/uploads/…` and `/workspace/…` are taken for paths in the directory.
    """
    path = f"uploads/{name}" if said is None else said
    for prefix in ("/workspace/", "/mnt/session/"):
        path = path.removeprefix(prefix)
    parts = split(path)
    if not parts:
        raise ToolFailed("a path names a file")
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise ToolFailed(f"no name in a path may be over {_MAX_NAME_BYTES} bytes: give the file a shorter mount_path")
    return "/".join(parts)


def _remove(parent: Path, name: str) -> None:
    descriptor = os.open(parent, FOLDER)
    try:
        gone = f".{name}.{uuid4().hex}"
        os.rename(name, gone, src_dir_fd=descriptor, dst_dir_fd=descriptor)  # whoever needs it again makes a new one
        remove(gone, descriptor)
    finally:
        os.close(descriptor)
