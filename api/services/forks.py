"""Forks: a new session with a copy of another's log."""

import asyncio
import time

from sqlalchemy import select
from sqlmodel import col

from api.staging import Staged
from api.transaction import Unit
from domain.clock import now
from domain.copies import Renaming
from domain.copies import select as choose
from domain.errors import CopyTooSlow, NotFound, TooLarge
from domain.ids import new_id
from storage.copies import PAGE, LogCopy, outline, remembered_after, runs_of, stored
from storage.rows import fetch_one
from storage.sessions import enter
from storage.tables import SessionRow

MAX_EVENTS = 20_000
"""Of a log that is copied in one request."""
SECONDS = 6.0
"""Less than a request may take: whoever is refused knows why."""
CUT_OFF = "The log was copied up to the middle of this run."


def check_size(events: int) -> None:
    """Raises TooLarge."""
    if events > MAX_EVENTS:
        raise TooLarge(f"{events:,} events are more than the {MAX_EVENTS:,} that can be copied in one request.")


class Watch:
    """Gives up what takes longer than a request may, before the request's own limit does it without saying why."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SECONDS

    async def pause(self) -> None:
        """Between two pages: others have their turn. Raises CopyTooSlow."""
        await asyncio.sleep(0)
        if time.monotonic() > self._until:
            raise CopyTooSlow(f"Copying this log took more than {SECONDS:.0f} s, which is all that a request may take.")


async def fork(unit: Unit, source_id: str, staged: Staged, before_event_id: str | None, title: str | None) -> SessionRow:
    """Write the new session, idle, with its copy of the log. Raises NotFound, TooLarge, CopyTooSlow."""
    watch = Watch()
    source = await _kept(unit, source_id)
    check_size(staged.last_seq)  # a log has no gaps, and what is too long is not read for that
    events = await outline(unit.connection, source.id, staged.last_seq)
    selection = choose(events)
    renaming = Renaming((source.id, staged.session_id), events, selection, staged.artifacts)
    last = max((event for event in events if event.seq <= staged.last_seq), key=lambda event: event.seq, default=None)
    row = await _session(unit, source, staged, None if last is None else last.id, before_event_id, title)
    await enter(unit.connection, row)
    copy = LogCopy(unit.connection, row, renaming, selection, await runs_of(unit.connection, source.id, selection.run_ids))
    for at in range(0, len(events), PAGE):
        await copy.take(await stored(unit.connection, source.id, events[at : at + PAGE]), staged.artifacts)
        await watch.pause()
    await copy.close(unit.journal, CUT_OFF)
    return row


async def _kept(unit: Unit, session_id: str) -> SessionRow:
    """The session, which is not deleted while it is read, and goes on meanwhile. Raises NotFound."""
    theirs = col(SessionRow.workspace_id) == unit.caller.workspace_id
    mine = (col(SessionRow.id) == session_id, theirs, col(SessionRow.hidden).is_(False))
    # Postgres: FOR KEY SHARE stands in the way of a DELETE only. On SQLite there is one writer, which is this one.
    statement = select(SessionRow).where(*mine).with_for_update(read=True, key_share=True)
    found = await fetch_one(unit.connection, SessionRow, statement)
    if found is None:
        raise NotFound(f"No session {session_id}.")
    return found


async def _session(
    unit: Unit, source: SessionRow, staged: Staged, event_id: str | None, before_event_id: str | None, title: str | None
) -> SessionRow:
    moment = now()
    # What a person decided for the whole session further on was asked about here, and is asked about again.
    asked_again = await remembered_after(unit.connection, source.id, staged.last_seq)
    permissions = {**source.permissions, **dict.fromkeys(asked_again, "always_ask")}
    return SessionRow(
        id=staged.session_id,
        workspace_id=source.workspace_id,
        agent_id=source.agent_id,
        agent_version=source.agent_version,
        title=source.title if title is None else title,
        titling=None if source.title is None and title is None else "done",
        meta=source.meta,
        tags=source.tags,
        on_busy=source.on_busy,
        queue_depth=source.queue_depth,
        permissions=permissions,
        environment_id=source.environment_id,
        resources=source.resources and [{**resource, "id": new_id("sesrsc")} for resource in source.resources],
        resources_pending=source.resources_pending or (source.resources or []) != staged.mounted,
        forked_from_id=source.id,
        forked_from_event_id=event_id,
        forked_before_event_id=before_event_id,
        created_at=moment,
        updated_at=moment,
    )
