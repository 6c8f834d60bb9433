"""What becomes of the messages to a turn that ended before it read them. Written in the transaction that ends it."""

from itertools import dropwhile, takewhile

from domain.clock import now
from domain.events import Event, RunQueued
from domain.ids import new_id
from domain.queue_events import SessionSteer
from domain.runs import RunStatus
from domain.transcript import STEERED
from storage.database import Connection
from storage.journal import Draft, Journal
from storage.pending import defer, unread
from storage.queues import NEXT, Queues, interrupts
from storage.rows import add
from storage.sessions import is_archived
from storage.tables import RunRow


async def hand_on(connection: Connection, journal: Journal, run: RunRow) -> None:
    """Messages that were steered into the run become the next turn.

    Where a message has interrupted it, its turn reads all that the interrupted one had not come to, its own input included.
    """
    late = await unread(connection, run.session_id, run.id)
    if not late or await is_archived(connection, run.session_id):
        return
    head = await Queues(connection).head(run.session_id)
    if head is not None and interrupts(head):
        await _defer(connection, journal, late, head.id, [])
        return
    # Not what was handed on to this run before: that is its own input, which else nobody could cancel.
    steered = [message for message in late if STEERED in (message.private or {}) and not message.for_run_id]
    if steered:
        await _become_a_turn(connection, journal, run, steered)


async def hand_on_rest(connection: Connection, journal: Journal, run: RunRow) -> None:
    """What else a turn would have read that waited becomes a turn of its own: its input was taken out of the queue."""
    waiting = await unread(connection, run.session_id, run.id)
    at = next((at for at, message in enumerate(waiting) if message.id == run.input_event_id), len(waiting))
    # What the system said goes with the message that it came with.
    behind = dropwhile(_of_the_system, waiting[at + 1 :])
    rest = [message for message in (*waiting[:at], *behind) if message.for_run_id or message.type == "user.message"]
    if rest:
        await _become_a_turn(connection, journal, run, rest)


async def part(connection: Connection, journal: Journal, run: RunRow, event_id: str) -> RunRow:
    """A message that a waiting turn would read beside its input becomes a turn of its own."""
    waiting = await unread(connection, run.session_id, run.id)
    at = [message.id for message in waiting].index(event_id)
    return await _become_a_turn(connection, journal, run, [waiting[at], *takewhile(_of_the_system, waiting[at + 1 :])])


def _of_the_system(message: Event) -> bool:
    return message.type == "system.message"


async def _become_a_turn(connection: Connection, journal: Journal, run: RunRow, messages: list[Event]) -> RunRow:
    following = _following(run, messages[0])
    await add(connection, following)
    await _defer(connection, journal, messages, following.id, [Draft(RunQueued())])
    return following


async def _defer(connection: Connection, journal: Journal, messages: list[Event], run_id: str, drafts: list[Draft]) -> None:
    ids = [message.id for message in messages]
    await defer(connection, ids, run_id)
    drafts = [*drafts, *(Draft(SessionSteer(event_id=id, status="deferred")) for id in ids)]
    await journal.append(messages[0].session_id, run_id, drafts)


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
