"""Carries out batches: begins their items, a few at a time, and says in their logs what came of them."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Literal

from temporalio import activity

from activities.commands import Commands
from activities.steadily import Did, steadily, told
from domain.agents import AgentConfig, Limits
from domain.batch_events import (
    BatchCancelled,
    BatchCancelRequested,
    BatchCompleted,
    BatchEvent,
    BatchProgress,
    BatchTerminated,
    FinishedItem,
)
from domain.batches import MOST_AT_ONCE, WorkRef, WorkResult
from domain.clock import now
from domain.errors import NotFound
from domain.events import RunQueued, TextContent, UserMessage
from live.bus import LiveBus
from storage.agents import config_of
from storage.batch_tables import BatchItemRow, BatchRow
from storage.batches import Batches, InFlight
from storage.commands import RunCommands, lock_runs
from storage.database import Connection, Database, Transaction
from storage.journal import Draft, Journal
from storage.queues import Queues
from storage.rows import add
from storage.sessions import Sessions
from storage.starts import Route, queued_run, run_start
from storage.tables import RunRow

Over = Literal["completed", "cancelled", "terminated"]

BEGUN_AT_ONCE = 20
"""Items a transaction: on SQLite everybody else's writes wait for it."""


class BatchActivities:
    def __init__(self, database: Database, live: LiveBus, commands: Commands, routes: Mapping[str, Route]) -> None:
        self._database = database
        self._live = live
        self._commands = commands
        self._routes = routes

    @activity.defn(name="batches.work")
    async def work(self, ref: WorkRef) -> WorkResult:
        """Keep so many of the batch's items going, until all are over. Safe to run again, and twice at a time."""
        return await steadily(lambda: self._step(ref.id))

    @activity.defn(name="batches.cancel")
    async def cancel(self, ref: WorkRef) -> None:
        """What `POST /v1/batches/{id}/cancel` writes, where Temporal was asked instead."""
        async with self._database.write() as transaction:
            batches = Batches(transaction.connection)
            try:
                row = await batches.get(ref.id, lock=True)
            except NotFound:
                return
            if row.finished_at is None and row.cancel_requested_at is None:
                await batches.change(row.id, status="cancelling", cancel_requested_at=now())
                await self._say(transaction, row, BatchCancelRequested())

    async def close(self, batch_id: str, status: Literal["cancelled", "terminated"]) -> None:
        """End a batch whose workflow is over and did not say so: nothing more begins, and what is at work is cancelled."""
        async with self._database.write() as transaction:
            row = await Batches(transaction.connection).get(batch_id, lock=True)
            if row.finished_at is not None:
                return
            open = [item for item in await self._land(transaction, row) if not item.over]
            stopping = await self._stop(transaction, open, f"The batch was {status}.")
            await self._end(transaction, row, status)
        await self._tell_to_stop(stopping)

    async def _step(self, batch_id: str) -> Did:
        try:
            async with self._database.read() as connection:
                row = await Batches(connection).get(batch_id)
                if row.finished_at is not None:
                    return "all"
                if not await self._due(connection, row):
                    return "nothing"
            return await self._move(batch_id)
        except NotFound:  # deleted
            return "all"

    async def _due(self, connection: Connection, row: BatchRow) -> bool:
        """Whether there is anything to write: looking costs no lock."""
        items = await Batches(connection).in_flight(row.id)
        if not items or any(item.over for item in items):
            return True
        if row.cancel_requested_at is not None:
            return any(not item.asked_to_stop for item in items)
        return row.next_index < row.item_count and await self._room(connection, row, len(items)) > 0

    async def _room(self, connection: Connection, row: BatchRow, at_work: int) -> int:
        """How many more may be at work: what the batch wants, and its share of what all batches may have together."""
        share = max(1, MOST_AT_ONCE // max(1, await Batches(connection).unfinished_count()))
        return min(row.max_concurrent, share) - at_work

    async def _move(self, batch_id: str) -> Did:
        started: list[RunRow] = []
        stopping: list[tuple[str, list[RunRow]]] = []
        async with self._database.write() as transaction:
            batches = Batches(transaction.connection)
            row = await batches.get(batch_id, lock=True)  # first of all locks: then those of the sessions of its runs
            if row.finished_at is not None:
                return "all"
            at_work = [item for item in await self._land(transaction, row) if not item.over]
            if row.cancel_requested_at is not None:
                stopping = await self._stop(transaction, at_work, row.cancel_reason)
            else:
                room = await self._room(transaction.connection, row, len(at_work))
                started = await self._begin(transaction, row, min(room, BEGUN_AT_ONCE))
            waiting = row.cancel_requested_at is None and row.next_index < row.item_count
            over = not (at_work or started or waiting)
            if over:
                await self._end(transaction, row, "completed" if row.cancel_requested_at is None else "cancelled")
        await told([self._commands.start(run_start(run, self._routes)) for run in started])
        await self._tell_to_stop(stopping)
        return "all" if over else "something"

    async def _land(self, transaction: Transaction, row: BatchRow) -> list[InFlight]:
        """Say in the batch's log which items are over by now; answers all that were in flight."""
        batches = Batches(transaction.connection)
        items = await batches.in_flight(row.id)
        ended = [item for item in items if item.over]
        if ended:
            await batches.landed(row.id, [item.index for item in ended])
            finished = tuple(FinishedItem.model_validate({**vars(item), "status": item.status or "deleted"}) for item in ended)
            counts = (await batches.counts([row]))[row.id]
            await self._say(transaction, row, BatchProgress(counts=counts, finished=finished))
        return items

    async def _begin(self, transaction: Transaction, row: BatchRow, room: int) -> list[RunRow]:
        """Give the next items their sessions and runs."""
        if room <= 0 or row.next_index >= row.item_count:
            return []
        batches = Batches(transaction.connection)
        config = await config_of(transaction.connection, row.agent_id, row.agent_version)
        runs: list[RunRow] = []
        for item in await batches.items(row.id, row.next_index, room):
            run = await self._run(transaction, row, item, config)
            await batches.begun(row.id, item.item_index, run.id)
            runs.append(run)
        row.next_index += len(runs)
        return runs

    async def _run(self, transaction: Transaction, row: BatchRow, item: BatchItemRow, config: AgentConfig) -> RunRow:
        session = await Sessions(transaction.connection, row.workspace_id).create(row.agent_id, row.agent_version)
        run = queued_run(
            session,
            config,
            kind="task",
            limits=Limits.model_validate(row.limits),
            metadata=item.meta,
            batch_id=row.id,
        )
        content = tuple(TextContent.model_validate(block) for block in item.input)
        message = Draft(UserMessage(content=content), queued=True)
        run.input_event_id = message.id
        await add(transaction.connection, run)
        await _journal(transaction).append(session.id, run.id, [message, Draft(RunQueued())])
        await Queues(transaction.connection).activate(session.id, run.id)
        return run

    async def _stop(
        self, transaction: Transaction, items: Sequence[InFlight], reason: str | None
    ) -> list[tuple[str, list[RunRow]]]:
        """Ask these runs to stop; answers them, each with its sub-agents."""
        asking = [item.run_id for item in items if not item.asked_to_stop]
        commands = RunCommands(transaction.connection, _journal(transaction))
        rows = [row for row in await lock_runs(transaction.connection, asking) if row.finished_at is None] if asking else []
        return [(row.id, await commands.cancel(row, reason)) for row in rows]

    async def _tell_to_stop(self, stopping: Sequence[tuple[str, list[RunRow]]]) -> None:
        for _, tree in stopping:
            for run in tree:
                self._live.stop(run.id)
        deliveries: list[Awaitable[None]] = [self._commands.cancel(run_id) for run_id, tree in stopping if tree]
        await told(deliveries)

    async def _end(
        self, transaction: Transaction, row: BatchRow, status: Literal["completed", "cancelled", "terminated"]
    ) -> None:
        batches = Batches(transaction.connection)
        await batches.end(row, status)
        counts = (await batches.counts([row]))[row.id]
        match status:
            case "completed":
                await self._say(transaction, row, BatchCompleted(counts=counts))
            case "cancelled":
                await self._say(transaction, row, BatchCancelled(counts=counts, reason=row.cancel_reason))
            case "terminated":
                await self._say(transaction, row, BatchTerminated(counts=counts))

    async def _say(self, transaction: Transaction, row: BatchRow, event: BatchEvent) -> None:
        await _journal(transaction).append(row.id, None, [Draft(event)])


def _journal(transaction: Transaction) -> Journal:
    return Journal(transaction.connection, transaction.appended)
