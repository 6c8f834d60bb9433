"""Cleaning up, once a day: sessions that are not kept any longer, directories of those that have long been idle, tokens that
have expired, and what nothing names any more."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from activities.retention import Retention
from domain.clock import now
from domain.sessions import Keep
from storage.client_tokens import remove_expired
from storage.database import Database
from storage.files import stored_ids
from storage.idempotency import expire_keys
from storage.sessions import expire_directory, idle_sessions
from tools.store import STORED, FileStore

EVERY_SECONDS = 86_400.0
AT_MOST_SECONDS = 20.0
"""After this long the rest is the next sweep's."""
PAGE = 200
KEEP_TOKENS = timedelta(days=1)
"""After they have expired: a page that was asleep is told so, and not that there is no such token."""

log = logging.getLogger(__name__)


class Tidy:
    """Costs a listing of the folder a day, and what there is to remove."""

    def __init__(self, database: Database, files: FileStore, keep: timedelta, sessions: Keep) -> None:
        self._database = database
        self._files = files
        self._keep = keep
        self._retention = Retention(database, files, sessions)
        self._due = 0.0

    async def when_due(self) -> None:
        """Do it where a day has passed since this process did."""
        if time.monotonic() >= self._due and await self.run(AT_MOST_SECONDS):
            self._due = time.monotonic() + EVERY_SECONDS

    async def run(self, seconds: float) -> bool:
        """Whether all was looked at within that time."""
        until = time.monotonic() + seconds
        async with self._database.write() as transaction:
            await expire_keys(transaction.connection)
            await remove_expired(transaction.connection, now() - KEEP_TOKENS)
        if not await self._retention.run(until):
            return False
        for workspace in await asyncio.to_thread(_names, self._files.root):
            folder = self._files.root / workspace
            for page in _pages(await asyncio.to_thread(_names, folder)):
                async with self._database.read() as connection:
                    sessions = [name for name in page if name.startswith("sesn_")]
                    idle, unknown = await idle_sessions(connection, sessions, now() - self._keep)
                left = [name for name in page if name.startswith(".")]  # by a removal that was cut off
                for name in (*idle, *await asyncio.to_thread(self._old, folder, unknown), *left):
                    if name not in idle or await self._expired(name):
                        await self._remove(workspace, name)
                    if time.monotonic() > until:
                        return False
            stored = await asyncio.to_thread(_names, folder / STORED)
            for page in _pages(await asyncio.to_thread(self._old, folder / STORED, stored)):
                async with self._database.read() as connection:
                    known = await stored_ids(connection, page)
                unknown = [name for name in page if name not in known]
                await asyncio.to_thread(self._files.remove_stored, workspace, unknown)
        return True

    async def _expired(self, session_id: str) -> bool:
        """Asked again just before: others were removed meanwhile, and the session may have gone on."""
        async with self._database.write() as transaction:
            return await expire_directory(transaction.connection, session_id, now() - self._keep)

    async def _remove(self, workspace: str, name: str) -> None:
        try:
            await asyncio.to_thread(self._files.remove_directory, workspace, name)
        except OSError as error:  # the next one may well be removed, and the sweep has more to do
            log.warning("the directory %s of workspace %s cannot be removed: %s", name, workspace, error.strerror)

    def _old(self, folder: Path, names: Sequence[str]) -> list[str]:
        """What no row names is kept as long: it may be another database that we were started with by mistake."""
        before = time.time() - self._keep.total_seconds()
        return [name for name in names if _changed_at(folder / name) < before]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _changed_at(path: Path) -> float:
    try:
        return path.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return time.time()


def _pages(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + PAGE] for at in range(0, len(names), PAGE))
