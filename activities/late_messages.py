"""What becomes of the messages to a turn that ended before it read them. Written in the transaction that ends it."""

from domain.clock import now
from domain.events import Event, RunQueued
from domain.ids import new_id
from domain.queue_events import SessionSteer
from domain.runs import RunStatus
from domain.transcript import STEERED
from storage.database import Transaction
from storage.journal import Draft, Journal
from storage.pending import defer, unread
from storage.queues import NEXT, Queues, interrupts
from storage.rows import add
from storage.sessions import is_archived
from storage.tables import RunRow


async def hand_on(transaction: Transaction, run: RunRow) -> None:
    """Messages that were steered into the run become the next turn.

    Where a message has interrupted it, its turn reads all that the interrupted one had not come to, its own input included.
    """
    connection = transaction.connection
    late = await unread(connection, run.session_id, run.id)
    if not late or await is_archived(connection, run.session_id):
        return
    head = await Queues(connection).head(run.session_id)
    if head is not None and interrupts(head):
        await _defer(transaction, late, head.id, [])
        return
    # Not what was handed on to this run before: that is its own input, which else nobody could cancel.
    steered = [message for message in late if STEERED in (message.private or {}) and message.for_run_id is None]
    if steered:
        following = _following(run, steered[0])
        await add(connection, following)
        await _defer(transaction, steered, following.id, [Draft(RunQueued())])


async def _defer(transaction: Transaction, messages: list[Event], run_id: str, drafts: list[Draft]) -> None:
    ids = [message.id for message in messages]
    await defer(transaction.connection, ids, run_id)
    drafts = [*drafts, *(Draft(SessionSteer(event_id=id, status="deferred")) for id in ids)]
    await Journal(transaction.connection, transaction.appended).append(messages[0].session_id, run_id, drafts)


def _following(run: RunRow, message: Event) -> RunRow:
    """A turn like that one."""
    moment = now()
    return RunRow(
        id=new_id("run"),
        workspace_id=run.workspace_id,
        session_id=run.session_id,
        kind="turn",
        agent_id=run.agent_id,
        agent_version=run.agent_version,
        agent_name=run.agent_name,
        model=run.model,
        status=RunStatus.QUEUED,
        limits=run.limits,
        meta={},
        created_at=moment,
        touched_at=moment,
        queue_position=NEXT + message.seq,
        input_event_id=message.id,
    )
