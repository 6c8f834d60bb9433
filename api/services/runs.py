"""Where a row and a workflow meet: starting runs, and commanding them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from api.content import Given
from api.services.contents import ContentService
from api.transaction import Unit
from api.wire import run_of
from domain.agents import Limits
from domain.clock import now
from domain.errors import Archived, Conflict, QueueFull, RunFinished, SessionBusy
from domain.events import Event, RunQueued, UserMessage
from domain.payload import UserContent
from domain.queue_events import SessionSteer
from domain.runs import RunStatus
from domain.sessions import OnBusy
from domain.transcript import STEERED
from live.bus import LiveBus
from storage.agents import config_of
from storage.commands import RunCommands
from storage.journal import Draft, written
from storage.pending import steered
from storage.queues import INTERRUPTING, NEXT, Queues
from storage.rows import add
from storage.runs import Runs
from storage.sessions import Sessions
from storage.starts import Route, queued_run, run_start
from storage.tables import RunRow, SessionRow
from workflows.client import RunClient

INTERRUPTED = "A message has interrupted it."


@dataclass(frozen=True)
class NewRun:
    content: Sequence[Given]
    kind: Literal["turn", "task"] = "turn"
    limits: Limits | None = None
    """None: the agent's own."""
    metadata: Mapping[str, str] | None = None
    on_busy: OnBusy | None = None
    """None: the session's own."""
    own_run: bool = False
    """Never steered into another."""
    initial: bool = False
    """The session begins with it: there is room, however many they are."""
    client_event_id: str | None = None
    content_at: str = "/content"
    """Where in the request's body the content is."""


class RunService:
    """Every command commits first and is delivered to Temporal afterwards; see `api.transaction`."""

    def __init__(
        self,
        client: RunClient,
        live: LiveBus,
        routes: Mapping[str, Route],
        contents: ContentService,
        temporal_ui: str | None = None,
    ) -> None:
        self._contents = contents
        self._client = client
        self._temporal_ui = temporal_ui
        self._live = live
        self._routes = routes

    async def submit(self, unit: Unit, session_id: str, new: NewRun) -> tuple[Event, RunRow]:
        """Append a message and the run that will handle it: at once when the session is idle, else as `on_busy` says.

        Raises NotFound, Archived, SessionBusy, QueueFull, Invalid.
        """
        session = await Sessions(unit.connection, unit.caller.workspace_id).get(session_id, lock=True)
        runs = Runs(unit.connection)
        key = None if new.client_event_id is None else f"client/{new.client_event_id}"
        if key is not None and (before := await written(unit.connection, session.id, key)):
            return before[0], await runs.get(before[0].for_run_id or before[0].run_id or "")
        if session.archived_at is not None:
            raise Archived(f"Session {session.id} is archived and takes no messages.")
        active = None if session.active_run_id is None else next(iter(await runs.not_over([session.active_run_id])), None)
        on_busy = new.on_busy or session.on_busy
        if active is not None and on_busy == "reject":
            temporal_ui = self._temporal_ui if unit.caller.session_id is None else None  # see `api.state`
            raise SessionBusy(f"Run {active.id} is still running in this session.", run_of(active, temporal_ui))
        content = await self.content(unit, session, new.content, new.content_at)
        message = UserMessage(content=content, client_event_id=new.client_event_id)
        ahead = 0
        match active, on_busy:
            case None, _:
                pass
            case run, "steer" if not new.own_run and _may_be_steered(run):
                return await self._steer(unit, session, run, message, key), run
            case _, "steer" if not new.own_run:
                ahead = NEXT
            case run, "interrupt":
                await self.cancel(unit, run.id, INTERRUPTED)
                ahead = INTERRUPTING
            case _:
                pass
        if not new.initial and (session.active_run_id is not None or session.paused):
            await self._check_room(unit, session)
        draft = Draft(message, queued=True)
        row = await self._row(unit, session, new, draft.id)
        await add(unit.connection, row)
        events = await unit.journal.append(session.id, row.id, [draft, Draft(RunQueued())], key=key)
        await Queues(unit.connection).place(row.id, ahead + events[0].seq)
        await self._activate(unit, row)
        return events[0], row

    async def _steer(self, unit: Unit, session: SessionRow, run: RunRow, message: UserMessage, key: str | None) -> Event:
        if await steered(unit.connection, session.id, run.id) >= session.queue_depth:
            raise QueueFull(f"{session.queue_depth} messages wait for the next model call of run {run.id}, which is the most.")
        draft = Draft(message, queued=True, private={STEERED: True})
        drafts = [draft, Draft(SessionSteer(event_id=draft.id, status="accepted"))]
        return (await unit.journal.append(session.id, run.id, drafts, key=key))[0]

    async def _check_room(self, unit: Unit, session: SessionRow) -> None:
        if await Queues(unit.connection).length(session.id) >= session.queue_depth:
            what = f"{session.queue_depth} messages wait in session {session.id}, which is its `queue_depth`"
            raise QueueFull(f"{what}: send this one later, or take one out of the queue.")

    def start(self, unit: Unit, row: RunRow) -> None:
        """Of a run that is its session's active one since this transaction."""
        start = run_start(row, self._routes)
        unit.deliveries.append(lambda: self._client.start(start))

    async def content(self, unit: Unit, session: SessionRow, given: Sequence[Given], at: str) -> tuple[UserContent, ...]:
        """A message's content as it is kept, if the session's model takes it. Raises Invalid."""
        return await self._contents.take(unit, (session.agent_id, session.agent_version), tuple(given), at)

    async def pause(self, unit: Unit, run_id: str, mode: Literal["step", "now"]) -> RunRow:
        row = await self._live_run(unit, run_id)
        tree = await self._tree(unit, row)
        for run in tree:
            if run.paused_at is None:
                asked = {"pause_requested_at": now(), "pause_mode": mode, "resume_requested_at": None}
                await Runs(unit.connection).change(run.id, **asked)
        if row.paused_at is None:

            async def deliver() -> None:
                if mode == "now":
                    self._stop_calls(tree)
                await self._client.pause(run_id, mode)

            unit.deliveries.append(deliver)
        return await Runs(unit.connection).get(run_id)

    async def resume(self, unit: Unit, run_id: str) -> RunRow:
        row = await self._live_run(unit, run_id)
        for run in await self._tree(unit, row):
            # Kept until a model call begins: a pause that is on its way may still come about, where this is not delivered.
            changes = {} if run.paused_at else {"pause_requested_at": None, "pause_mode": None}
            await Runs(unit.connection).change(run.id, resume_requested_at=now(), **changes)
        unit.deliveries.append(lambda: self._client.resume(run_id))
        return await Runs(unit.connection).get(run_id)

    async def cancel(self, unit: Unit, run_id: str, reason: str | None) -> RunRow:
        row = await self._live_run(unit, run_id)
        if tree := await RunCommands(unit.connection, unit.journal).cancel(row, reason):

            async def deliver() -> None:
                self._stop_calls(tree)
                await self._client.cancel(run_id)

            unit.deliveries.append(deliver)
        return await Runs(unit.connection).get(run_id)

    async def terminate(self, unit: Unit, run_id: str, reason: str | None) -> RunRow:
        row = await self._live_run(unit, run_id)
        if tree := await RunCommands(unit.connection, unit.journal).terminate(row, reason):

            async def deliver() -> None:
                await self._client.terminate(run_id, reason)
                self._stop_calls(tree)

            unit.deliveries.append(deliver)
        return await Runs(unit.connection).get(run_id)

    async def retry(self, unit: Unit, run_id: str) -> RunRow:
        """Run a failed run again, from where its log stands. Raises what `RunCommands.retry` does."""
        row = await Runs(unit.connection).get(run_id, unit.caller.workspace_id, lock=True)
        row = await RunCommands(unit.connection, unit.journal).retry(row)
        await self._activate(unit, row)
        return row

    async def input(self, unit: Unit, run_id: str, given: Sequence[Given]) -> RunRow:
        """Add a message that the run's next model call reads. Raises Invalid."""
        row = await self._live_run(unit, run_id)
        content = await self._contents.take(unit, (row.agent_id, row.agent_version), given, "/content")
        await unit.journal.append(row.session_id, run_id, [Draft(UserMessage(content=content), queued=True)])
        return await Runs(unit.connection).get(run_id)

    async def _live_run(self, unit: Unit, run_id: str) -> RunRow:
        row = await Runs(unit.connection).get(run_id, unit.caller.workspace_id, lock=True)
        if RunStatus(row.status).over:
            raise RunFinished(f"Run {run_id} is {row.status}.")
        return row

    async def _tree(self, unit: Unit, row: RunRow) -> list[RunRow]:
        """The run and the sub-agents below it."""
        return [row, *await Runs(unit.connection).below(row.id)]

    def _stop_calls(self, runs: Sequence[RunRow]) -> None:
        for run in runs:
            self._live.stop(run.id)

    async def archive(self, unit: Unit, session_id: str) -> None:
        """Take no more messages. A turn that only waits is cancelled, with those behind it. Raises Conflict while one works."""
        sessions = Sessions(unit.connection, unit.caller.workspace_id)
        session = await sessions.get(session_id, lock=True)
        if session.archived_at is not None:
            return
        active = None if session.active_run_id is None else await self._live_run(unit, session.active_run_id)
        if active is not None and active.status != RunStatus.WAITING:
            raise Conflict(f"Run {active.id} is at work in this session: cancel it first, or wait for its end.")
        for queued in reversed(await Queues(unit.connection).waiting(session_id)):
            await self.cancel(unit, queued.id, "The session was archived.")
        if active is not None:
            await self.cancel(unit, active.id, "The session was archived.")
        await sessions.change(session_id, archived_at=now())

    async def _row(self, unit: Unit, session: SessionRow, new: NewRun, input_event_id: str) -> RunRow:
        config = await config_of(unit.connection, session.agent_id, session.agent_version)
        row = queued_run(session, config, kind=new.kind, limits=new.limits, metadata=new.metadata or {})
        row.input_event_id = input_event_id
        return row

    async def _activate(self, unit: Unit, row: RunRow) -> None:
        if await Queues(unit.connection).activate(row.session_id, row.id):
            self.start(unit, row)


def _may_be_steered(run: RunRow) -> bool:
    """Not where it was told to stop: it will call its model no more."""
    return run.cancel_requested_at is None and run.terminate_requested_at is None
