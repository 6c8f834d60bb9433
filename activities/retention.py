"""Deleting sessions whose time is over, as a person would: rows, files, and the histories in Temporal."""

import asyncio
import logging
import time

from domain.sessions import Keep
from storage.artifacts import Artifacts
from storage.database import Database
from storage.sessions import Sessions, expired_sessions
from tools.store import FileStore

log = logging.getLogger(__name__)

PAGE = 500


class Retention:
    def __init__(self, database: Database, files: FileStore, keep: Keep) -> None:
        self._database = database
        self._files = files
        self._keep = keep

    async def run(self, until: float) -> bool:
        """Whether all sessions were looked at before that time of the monotonic clock."""
        after: str | None = "" if self._keep != Keep() else None
        deleted = 0
        while after is not None and time.monotonic() < until:
            async with self._database.read() as connection:
                found, after = await expired_sessions(connection, self._keep, after, PAGE)
            for session_id, workspace_id in found:
                deleted += await self._delete(workspace_id, session_id)
                if time.monotonic() > until:
                    return False
        if deleted:
            log.info("deleted %d sessions whose time was over", deleted)
        return after is None

    async def _delete(self, workspace_id: str, session_id: str) -> bool:
        async with self._database.write() as transaction:
            sessions = Sessions(transaction.connection, workspace_id)
            if not await sessions.expired(session_id, self._keep):
                return False
            artifacts = await Artifacts(transaction.connection, workspace_id).ids(session_id)
            await sessions.delete(session_id)
        await asyncio.to_thread(self._files.remove_session, workspace_id, session_id, artifacts)
        return True
