"""Settling an approval: its row, what the log says of it, and what the run and its session are then."""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlmodel import col

from domain.approvals import ApprovalStatus, Decision
from domain.clock import now
from domain.events import ApprovalExpired, ApprovalResolved, SessionIdle, SessionRunning, UserToolConfirmation
from domain.runs import StopReason
from storage.approvals import Approvals
from storage.database import Connection
from storage.journal import Draft, Journal
from storage.tables import ApprovalRow, SessionRow
from storage.waits import Open, Waits, of_people, standing


@dataclass
class Decisions:
    """The caller has locked the run."""

    connection: Connection
    journal: Journal

    async def settle(self, approval: ApprovalRow, decision: Decision | None) -> ApprovalRow:
        """Decide on a pending approval; None: its time is over. One that is settled stays as it is."""
        if approval.status != ApprovalStatus.PENDING:
            return approval
        moment = now()
        if decision is None:
            status = ApprovalStatus.EXPIRED
            drafts = [Draft(ApprovalExpired(approval_id=approval.id, tool_use_id=approval.tool_use_id))]
            columns: dict[str, object] = {}
        else:
            status = ApprovalStatus.APPROVED if decision.approve else ApprovalStatus.DENIED
            drafts = _said(approval, decision)
            columns = {
                "reason": decision.reason,
                "edited_input": decision.edited_input,
                "remembered": decision.remember,
                "decided_by": decision.decided_by,
            }
            if decision.remember:
                await self._remember(approval, decision.approve)
        approvals = Approvals(self.connection)
        await approvals.change(approval.id, status=status.value, decided_at=moment, **columns)
        waiting = await Waits(self.connection).open_of(approval.run_id)
        drafts += state_of_session(waiting, had_people=True)
        changes = standing(waiting) | {"answered_at": moment}
        await self.journal.append(approval.session_id, approval.run_id, drafts, run_changes=changes)
        return await approvals.get(approval.id)

    async def _remember(self, approval: ApprovalRow, approve: bool) -> None:
        mine = col(SessionRow.id) == approval.session_id
        permissions = (await self.connection.execute(select(col(SessionRow.permissions)).where(mine))).scalar_one()
        policy = "always_allow" if approve else "always_deny"
        changed = {**permissions, approval.tool_name: policy}
        await self.connection.execute(update(SessionRow).where(mine).values(permissions=changed))


def state_of_session(waiting: list[Open], *, had_people: bool) -> list[Draft]:
    """What viewers are told once a wait is over: idle with those that are left, or at work again."""
    if left := of_people(waiting):
        return [Draft(SessionIdle(stop_reason=StopReason(type="requires_action", event_ids=left)))]
    return [Draft(SessionRunning())] if had_people else []


def _said(approval: ApprovalRow, decision: Decision) -> list[Draft]:
    approve = decision.approve
    confirmation = UserToolConfirmation(
        tool_use_id=approval.tool_use_id,
        result="allow" if approve else "deny",
        deny_message=None if approve else decision.reason,
    )
    resolved = ApprovalResolved(
        approval_id=approval.id,
        tool_use_id=approval.tool_use_id,
        status="approved" if approve else "denied",
        reason=decision.reason,
        edited_input=decision.edited_input,
        remembered=decision.remember,
        decided_by=decision.decided_by,
    )
    return [Draft(confirmation), Draft(resolved)]
