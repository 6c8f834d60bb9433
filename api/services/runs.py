"""Where a row and a workflow meet: starting runs, and commanding them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from api.transaction import Unit
from domain.agents import Limits
from domain.clock import now
from domain.errors import Archived, Conflict, RunFinished, SessionBusy
from domain.events import Event, RunQueued, TextContent, UserMessage
from domain.runs import RunStatus
from live.bus import LiveBus
from storage.agents import config_of
from storage.commands import RunCommands
from storage.journal import Draft, written
from storage.rows import add
from storage.runs import Runs
from storage.sessions import Sessions
from storage.starts import Route, queued_run, run_start
from storage.tables import RunRow, SessionRow
from workflows.client import RunClient

Content = tuple[TextContent, ...]


@dataclass(frozen=True)
class NewRun:
    content: Content
    kind: Literal["turn", "task"] = "turn"
    limits: Limits | None = None
    """None: the agent's own."""
    metadata: Mapping[str, str] | None = None
    on_busy: Literal["queue", "reject"] | None = None
    """None: the session's own."""
    client_event_id: str | None = None


class RunService:
    """Every command commits first and is delivered to Temporal afterwards; see `api.transaction`."""

    def __init__(self, client: RunClient, live: LiveBus, routes: Mapping[str, Route]) -> None:
        self._client = client
        self._live = live
        self._routes = routes

    async def submit(self, unit: Unit, session_id: str, new: NewRun) -> tuple[Event, RunRow]:
        """Append a message and the run that will handle it: at once when the session is idle, else in its turn.

        Raises NotFound, Archived, SessionBusy.
        """
        session = await Sessions(unit.connection, unit.caller.workspace_id).get(session_id, lock=True)
        runs = Runs(unit.connection)
        key = None if new.client_event_id is None else f"client/{new.client_event_id}"
        if key is not None and (before := await written(unit.connection, session.id, key)):
            assert before[0].run_id is not None
            return before[0], await runs.get(before[0].run_id)
        if session.archived_at is not None:
            raise Archived(f"Session {session.id} is archived and takes no messages.")
        if session.active_run_id is not None and (new.on_busy or session.on_busy) == "reject":
            raise SessionBusy(f"Run {session.active_run_id} is still running in this session.")
        row = await self._row(unit, session, new)
        await add(unit.connection, row)
        message = UserMessage(content=new.content, client_event_id=new.client_event_id)
        drafts = [Draft(message, queued=True), Draft(RunQueued())]
        events = await unit.journal.append(session.id, row.id, drafts, key=key)
        await self._activate(unit, row)
        return events[0], row

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
            changes = {"resume_requested_at": now()} if run.paused_at else {"pause_requested_at": None, "pause_mode": None}
            await Runs(unit.connection).change(run.id, **changes)
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
        """Run a failed run again, from where its log stands. Raises Conflict when it did not fail or is not the newest."""
        row = await Runs(unit.connection).get(run_id, unit.caller.workspace_id, lock=True)
        row = await RunCommands(unit.connection, unit.journal).retry(row)
        await self._activate(unit, row)
        return row

    async def input(self, unit: Unit, run_id: str, content: Content) -> RunRow:
        """Add a message that the run's next model call reads."""
        row = await self._live_run(unit, run_id)
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
        if session.active_run_id is not None:
            row = await self._live_run(unit, session.active_run_id)
            if row.status != RunStatus.WAITING:
                raise Conflict(f"Run {row.id} is at work in this session: cancel it first, or wait for its end.")
            for queued in await Runs(unit.connection).queued_in(session_id):
                await self.cancel(unit, queued, "The session was archived.")
            await self.cancel(unit, row.id, "The session was archived.")
        await sessions.change(session_id, archived_at=now())

    async def _row(self, unit: Unit, session: SessionRow, new: NewRun) -> RunRow:
        config = await config_of(unit.connection, session.agent_id, session.agent_version)
        return queued_run(session, config, kind=new.kind, limits=new.limits, metadata=new.metadata or {})

    async def _activate(self, unit: Unit, row: RunRow) -> None:
        if await Runs(unit.connection).activate(row.session_id, row.id):
            start = run_start(row, self._routes)
            unit.deliveries.append(lambda: self._client.start(start))
