"""What is done to a session as a whole: its queue edited, its turn interrupted, all of it paused."""

from collections.abc import Sequence
from typing import Literal

from api.content import Given
from api.services.runs import RunService
from api.transaction import Unit
from domain.clock import wire
from domain.errors import AlreadyStarted, NotFound
from domain.events import Event
from domain.multiagent import thread_of
from domain.queue_events import QueueUpdated, SessionPaused, SessionResumed, UserInterrupt
from domain.runs import RunStatus
from domain.transcript import plain
from storage.journal import Draft, reword
from storage.late_messages import hand_on_rest, part
from storage.projections import LAST_MESSAGE_CHARS
from storage.queues import Queues, Waiting
from storage.runs import Runs
from storage.sessions import Sessions
from storage.tables import RunRow, SessionRow


class SessionService:
    """Like `RunService`: the rows first, then Temporal."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs

    async def pause(self, unit: Unit, session_id: str, mode: Literal["step", "now"]) -> None:
        """Start nothing more, and pause the turn that runs."""
        session = await self._locked(unit, session_id)
        if not session.paused:
            await unit.journal.append(session_id, None, [Draft(SessionPaused())])
        if active := await self._active(unit, session):
            await self._runs.pause(unit, active.id, mode)

    async def resume(self, unit: Unit, session_id: str) -> None:
        """Let the turn go on that the session was paused in, or start the next one."""
        session = await self._locked(unit, session_id)
        if session.paused:
            await unit.journal.append(session_id, None, [Draft(SessionResumed())])
        active = await self._active(unit, session)
        if active is None:
            if following := await Queues(unit.connection).take_over(session_id, session.active_run_id or ""):
                self._runs.start(unit, following)
        elif active.pause_requested_at is not None:  # else a limit has paused it, which is another matter
            await self._runs.resume(unit, active.id)

    async def interrupt(self, unit: Unit, session_id: str, thread_id: str | None = None) -> Event:
        """End the running turn, or the work of one sub-agent in it. Nothing to interrupt is no error. Raises NotFound."""
        session = await self._locked(unit, session_id)
        target = await self._active(unit, session)
        if thread_id is not None and thread_id != thread_of(session_id):
            target = await Runs(unit.connection).on_thread(session_id, thread_id)
        if target is None or RunStatus(target.status).over:
            return (await unit.journal.append(session_id, None, [Draft(UserInterrupt())]))[0]
        (event,) = await unit.journal.append(session_id, target.id, [Draft(UserInterrupt(), queued=True)])
        await self._runs.cancel(unit, target.id, "It was interrupted.")
        return event

    async def edit(
        self, unit: Unit, session_id: str, event_id: str, given: Sequence[Given] | None, place: int | None
    ) -> Waiting:
        """Change what a waiting message says, or its turn's place. Raises NotFound, AlreadyStarted."""
        session, row = await self._waiting(unit, session_id, event_id)
        queues = Queues(unit.connection)
        content = None if given is None else await self._runs.content(unit, session, given, "/content")
        if content is not None:
            sent_at = await reword(unit.connection, session_id, event_id, content)
            last = session.last_message
            if last is not None and (last["role"], last["created_at"]) == ("user", wire(sent_at)):
                changed = {**last, "text": plain(content)[:LAST_MESSAGE_CHARS]}
                await Sessions(unit.connection, unit.caller.workspace_id).change(session_id, last_message=changed)
        if place is not None:
            place = await queues.move(row, place)
        update = QueueUpdated(event_id=event_id, content=content, position=place)
        await unit.journal.append(session_id, row.id, [Draft(update)])
        return next(found for found in await queues.shown(session_id) if found.event_id == event_id)

    async def remove(self, unit: Unit, session_id: str, event_id: str) -> None:
        """Take a message out of the queue: its turn is cancelled, but what else that would have read is not lost.

        Raises NotFound, AlreadyStarted.
        """
        _, row = await self._waiting(unit, session_id, event_id)
        if event_id != row.input_event_id:
            row = await part(unit.connection, unit.journal, row, event_id)
        await self._runs.cancel(unit, row.id, "It was taken out of the queue.")
        await hand_on_rest(unit.connection, unit.journal, row)

    async def _waiting(self, unit: Unit, session_id: str, event_id: str) -> tuple[SessionRow, RunRow]:
        session = await self._locked(unit, session_id)
        row = await Queues(unit.connection).reading(session_id, event_id)
        if row is None:
            raise NotFound(f"No message {event_id} in the queue.")
        if row.status != RunStatus.QUEUED or row.id == session.active_run_id:
            raise AlreadyStarted(f"Message {event_id} waits no more: run {row.id} is {row.status}.")
        if event_id not in {found.event_id for found in await Queues(unit.connection).shown(session_id)}:
            raise AlreadyStarted(f"A model has read message {event_id}: edit and regenerate instead, by a fork.")
        return session, row

    async def _locked(self, unit: Unit, session_id: str) -> SessionRow:
        return await Sessions(unit.connection, unit.caller.workspace_id).get(session_id, lock=True)

    async def _active(self, unit: Unit, session: SessionRow) -> RunRow | None:
        if session.active_run_id is None:
            return None
        return next(iter(await Runs(unit.connection).not_over([session.active_run_id])), None)
