"""What a command to a run writes, for the API and for work in bulk. Whoever calls tells Temporal, after the commit."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import col

from domain.clock import now
from domain.errors import Archived, Conflict
from domain.events import RunCancelled, RunQueued, RunTerminated
from domain.queue_events import QueueUpdated
from domain.runs import RunStatus
from storage.approvals import Approvals
from storage.database import Connection
from storage.journal import Draft, Journal
from storage.queues import NEXT, Queues
from storage.rows import fetch
from storage.runs import Runs
from storage.sessions import is_archived
from storage.tables import RunRow, SessionRow


async def lock_runs(connection: Connection, run_ids: Sequence[str]) -> list[RunRow]:
    """Several runs with their sessions. In the order of ids, so that two that lock many do not lock each other out."""
    sessions = select(col(RunRow.session_id)).where(col(RunRow.id).in_(run_ids))
    locking = select(col(SessionRow.id)).where(col(SessionRow.id).in_(sessions)).order_by(col(SessionRow.id))
    await connection.execute(locking.with_for_update())
    runs = select(RunRow).where(col(RunRow.id).in_(run_ids)).order_by(col(RunRow.id))
    return await fetch(connection, RunRow, runs.with_for_update())


class RunCommands:
    """The caller holds the locks of the run's session and of the run, and has seen that the command is possible."""

    def __init__(self, connection: Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal
        self._runs = Runs(connection)

    async def cancel(self, row: RunRow, reason: str | None) -> list[RunRow]:
        """Answers the runs that are to be told: it and the sub-agents below it. None: it still waited, and is over now."""
        if await self._drop_if_waiting(row, RunCancelled(reason=reason)):
            return []
        tree = [row, *await self._runs.below(row.id)]
        for run in tree:
            if run.cancel_requested_at is None:
                await self._runs.change(run.id, cancel_requested_at=now(), stop_note=reason)
                await self._close_approvals(run)
        return tree

    async def terminate(self, row: RunRow, reason: str | None) -> list[RunRow]:
        """Answers as `cancel` does."""
        if await self._drop_if_waiting(row, RunTerminated(reason=reason)):
            return []
        tree = [row, *await self._runs.below(row.id)]
        for run in tree:
            await self._runs.change(run.id, terminate_requested_at=now(), stop_note=reason)
            await self._close_approvals(run)
        return tree

    async def retry(self, row: RunRow, bulk_id: str | None = None) -> RunRow:
        """Queue it again, from where its log stands. Raises Conflict when it did not fail or is not the newest, Archived.

        `bulk_id`: the bulk operation that does it; None: a person.
        """
        if row.status not in (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TERMINATED):
            raise Conflict(f"Run {row.id} is {row.status}: only a run that failed or was stopped can be retried.")
        if row.copied_from is not None:
            raise Conflict(f"Run {row.id} is a copy of {row.copied_from}, which never ran in this session: send a message.")
        if row.thread_id is not None:
            raise Conflict(f"Run {row.id} is a sub-agent's: run {row.parent_run_id} has its outcome, and may delegate again.")
        if await is_archived(self._connection, row.session_id):
            raise Archived(f"Session {row.session_id} is archived: nothing starts in it any more.")
        if await self._runs.newest_in(row.session_id) != row.id or await self._runs.gone_on(row):
            raise Conflict(f"The session has gone on after run {row.id}: send the message again instead.")
        fresh = {
            "pause_requested_at": None,
            "paused_at": None,
            "resume_requested_at": None,
            "cancel_requested_at": None,
            "terminate_requested_at": None,
            "stop_note": None,
            "answered_at": None,
            "workflow_seen_at": None,
            "bulk_id": bulk_id,
        }
        queued = [Draft(RunQueued(attempt=row.attempt + 1))]
        (again,) = await self._journal.append(row.session_id, row.id, queued, run_changes=fresh)
        await Queues(self._connection).place(row.id, NEXT + again.seq)
        return await self._runs.get(row.id)

    async def _close_approvals(self, row: RunRow) -> None:
        """Nobody is asked any more, from the moment on in which the run is told to stop."""
        drafts = await Approvals(self._connection).cancel_pending(row.id)
        if drafts:
            await self._journal.append(row.session_id, row.id, drafts)

    async def _drop_if_waiting(self, row: RunRow, payload: RunCancelled | RunTerminated) -> bool:
        """End a turn that still waits behind another: no workflow knows of it."""
        if row.status != RunStatus.QUEUED or row.thread_id is not None:
            return False
        active = select(col(SessionRow.active_run_id)).where(col(SessionRow.id) == row.session_id)
        if (await self._connection.execute(active)).scalar_one_or_none() == row.id:
            return False
        drafts = [] if row.input_event_id is None else [Draft(QueueUpdated(event_id=row.input_event_id, removed=True))]
        await self._journal.append(row.session_id, row.id, [*drafts, Draft(payload)])
        return True
