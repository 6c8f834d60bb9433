"""Streams end with the key, or the client token, that they were opened with."""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager

from api.tail import Viewer
from domain.clock import now
from domain.errors import Unavailable
from domain.keys import Principal
from storage.client_tokens import still_good
from storage.database import Database

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between looks at all keys and tokens that have streams open, however many events these are sent."""
PAGE = 500


class Admissions:
    """The callers whose streams this process has open."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: dict[str, set[Viewer]] = {}
        """By the id of the key or token."""
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def ending(self, viewer: Viewer, caller: Principal) -> Generator[None]:
        """Inside the block the viewer's stream ends when the caller's time is over, and soon after the key is revoked."""
        expiry = None
        if caller.expires_at is not None:
            seconds = (caller.expires_at - now()).total_seconds()
            expiry = asyncio.get_running_loop().call_later(seconds, viewer.end)
        viewers = self._open.setdefault(caller.key_id, set())
        viewers.add(viewer)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            if expiry is not None:
                expiry.cancel()
            viewers.discard(viewer)
            if not viewers:
                self._open.pop(caller.key_id, None)

    async def _look(self) -> None:
        while self._open:
            await asyncio.sleep(LOOK_SECONDS)
            ids = list(self._open)
            for begin in range(0, len(ids), PAGE):
                await self._end_of(ids[begin : begin + PAGE])

    async def _end_of(self, ids: list[str]) -> None:
        try:
            async with self._database.read() as connection:
                good = await still_good(connection, ids)
        except Unavailable as error:
            log.warning("whether keys are still good cannot be read, trying again: %s", error.message)
            return
        for id in ids:
            if id not in good:
                for viewer in self._open.get(id, ()):
                    viewer.end()
