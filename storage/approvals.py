"""Approvals: decisions of people that tool calls wait for."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from domain.approvals import ApprovalStatus
from domain.clock import now
from domain.errors import NotFound
from domain.events import ApprovalCancelled
from storage.database import Connection
from storage.journal import Draft
from storage.rows import Page, fetch, fetch_one, page
from storage.tables import ApprovalRow


@dataclass(frozen=True)
class ApprovalFilter:
    statuses: Sequence[ApprovalStatus] = ()
    session_id: str | None = None
    run_id: str | None = None


class Approvals:
    """All SQL on approvals."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, approval_id: str, workspace_id: str | None = None) -> ApprovalRow:
        """Raises NotFound, also when it is another workspace's. `workspace_id` None is for the worker only."""
        statement = select(ApprovalRow).where(col(ApprovalRow.id) == approval_id)
        if workspace_id is not None:
            statement = statement.where(col(ApprovalRow.workspace_id) == workspace_id)
        found = await fetch_one(self._connection, ApprovalRow, statement)
        if found is None:
            raise NotFound(f"No approval {approval_id}.")
        return found

    async def of_tool_use(self, session_id: str, tool_use_id: str) -> ApprovalRow:
        """Raises NotFound, also for a tool use of another session."""
        mine = (col(ApprovalRow.tool_use_id) == tool_use_id, col(ApprovalRow.session_id) == session_id)
        found = await fetch_one(self._connection, ApprovalRow, select(ApprovalRow).where(*mine))
        if found is None:
            raise NotFound(f"No tool use {tool_use_id} that waits for approval.")
        return found

    async def find(
        self, workspace_id: str, wanted: ApprovalFilter, *, limit: int, cursor: str | None, descending: bool
    ) -> Page[ApprovalRow]:
        statement = select(ApprovalRow).where(col(ApprovalRow.workspace_id) == workspace_id)
        if wanted.session_id is not None:
            statement = statement.where(col(ApprovalRow.session_id) == wanted.session_id)
        if wanted.run_id is not None:
            statement = statement.where(col(ApprovalRow.run_id) == wanted.run_id)
        return await page(
            self._connection,
            ApprovalRow,
            statement,
            at=ApprovalRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=ApprovalRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
            one_of=[col(ApprovalRow.status) == status.value for status in dict.fromkeys(wanted.statuses)],
        )

    async def change(self, approval_id: str, **columns: object) -> None:
        await self._connection.execute(update(ApprovalRow).where(col(ApprovalRow.id) == approval_id).values(columns))

    async def decided(self, run_id: str) -> list[ApprovalRow]:
        """Those of the newest step that are decided, which the workflow may not have heard of."""
        newest = select(ApprovalRow).where(col(ApprovalRow.run_id) == run_id).order_by(col(ApprovalRow.created_at).desc())
        last = await fetch_one(self._connection, ApprovalRow, newest)
        if last is None:
            return []
        mine = (col(ApprovalRow.run_id) == run_id, col(ApprovalRow.created_at) == last.created_at)
        final = (ApprovalStatus.APPROVED.value, ApprovalStatus.DENIED.value)
        return await fetch(self._connection, ApprovalRow, select(ApprovalRow).where(*mine, col(ApprovalRow.status).in_(final)))

    async def cancel_pending(self, run_id: str) -> list[Draft]:
        """Nobody needs to decide any more; the events that say so."""
        rows = await fetch(self._connection, ApprovalRow, _PENDING_OF, {"of_run": run_id})
        if rows:
            closing = update(ApprovalRow).where(*_PENDING).values(status=ApprovalStatus.CANCELLED.value, decided_at=now())
            await self._connection.execute(closing, {"of_run": run_id})
        return [Draft(ApprovalCancelled(approval_id=row.id, tool_use_id=row.tool_use_id)) for row in rows]


_PENDING = (col(ApprovalRow.run_id) == bindparam("of_run"), col(ApprovalRow.status) == ApprovalStatus.PENDING.value)
_PENDING_OF = select(ApprovalRow).where(*_PENDING)
