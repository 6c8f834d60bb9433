"""Workflows of deleted sessions: noted in the transaction that deletes, until Temporal has deleted their histories."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, insert, literal, or_, select, update
from sqlmodel import col

from domain.clock import now
from domain.ids import settle_id, title_id
from storage.database import Connection
from storage.rows import fetch
from storage.tables import ForgottenWorkflowRow, RunRow, SessionRow, UtcDateTime

KEPT = timedelta(days=30)
"""After so long without success nobody asks Temporal any more: its own retention has done it, or never will."""
_ID = col(ForgottenWorkflowRow.workflow_id)


async def forget_workflows(connection: Connection, session_id: str) -> None:
    """Note all workflows that the session may have. To be called before its rows are deleted."""
    mine = (col(RunRow.session_id) == session_id) & col(RunRow.copied_from).is_(None)  # a copy never ran, and has none
    # Settled by a workflow of its own was a run that was terminated, in this attempt or in one before.
    settled = mine & or_(col(RunRow.terminate_requested_at).is_not(None), col(RunRow.attempt) > 1)
    titled = (col(SessionRow.id) == session_id) & col(SessionRow.titling).is_not(None)
    for ids in (
        select(col(RunRow.id)).where(mine),
        select(literal(settle_id("")) + col(RunRow.id)).where(settled),
        select(literal(title_id("")) + col(SessionRow.id)).where(titled),
    ):
        await _note(connection, ids)


async def _note(connection: Connection, ids: Select[Any]) -> None:
    moment = literal(now(), UtcDateTime())
    columns = ["workflow_id", "created_at", "due_at"]
    await connection.execute(insert(ForgottenWorkflowRow).from_select(columns, ids.add_columns(moment, moment)))


class Forgotten:
    """For the worker only."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def due(self, limit: int) -> list[ForgottenWorkflowRow]:
        """Those about which Temporal is to be asked now."""
        due_at = col(ForgottenWorkflowRow.due_at)
        statement = select(ForgottenWorkflowRow).where(due_at <= now()).order_by(due_at, _ID).limit(limit)
        return await fetch(self._connection, ForgottenWorkflowRow, statement)

    async def ask_again(self, workflow_ids: Sequence[str], at: datetime) -> None:
        await self._connection.execute(update(ForgottenWorkflowRow).where(_ID.in_(workflow_ids)).values(due_at=at))

    async def done(self, workflow_ids: Sequence[str]) -> None:
        """Temporal knows nothing of them any more."""
        await self._connection.execute(delete(ForgottenWorkflowRow).where(_ID.in_(workflow_ids)))

    async def give_up(self) -> None:
        """On what has been asked for long enough."""
        old = col(ForgottenWorkflowRow.created_at) < now() - KEPT
        await self._connection.execute(delete(ForgottenWorkflowRow).where(old))
