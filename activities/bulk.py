"""Carries out bulk operations: what the command for one run does, page by page for all that match."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field

from temporalio import activity

from activities.commands import Commands
from activities.steadily import Did, steadily, told
from domain.batches import ELIGIBLE, BulkStatus, WorkRef, WorkResult
from domain.clock import now
from domain.errors import Conflict, NotFound
from live.bus import LiveBus
from storage.batch_tables import BulkOperationRow
from storage.bulk import BulkOperations
from storage.commands import RunCommands, lock_runs
from storage.database import Database, Transaction
from storage.journal import Journal
from storage.queues import Queues
from storage.starts import Route, run_start
from storage.tables import RunRow

PAGE = 20
"""Runs a transaction: on SQLite everybody else's writes wait for it."""
RETRIED_AT_ONCE = 16
"""Runs that a retry has at work; the next ones begin as these end."""


@dataclass
class Done:
    """What a page has done, and what is to be told of it once that is committed."""

    count: int = 0
    stopped: list[RunRow] = field(default_factory=list[RunRow])
    deliveries: list[Awaitable[None]] = field(default_factory=list[Awaitable[None]])


class BulkActivities:
    def __init__(self, database: Database, live: LiveBus, commands: Commands, routes: Mapping[str, Route]) -> None:
        self._database = database
        self._live = live
        self._commands = commands
        self._routes = routes

    @activity.defn(name="bulk.work")
    async def work(self, ref: WorkRef) -> WorkResult:
        """Do it to all that match. Safe to run again: it goes on behind the last page that was committed."""
        return await steadily(lambda: self._step(ref.id))

    async def close(self, id: str, status: BulkStatus) -> None:
        """End one whose workflow is over and did not say so. What it has done stays done."""
        async with self._database.write() as transaction:
            row = await BulkOperations(transaction.connection).get(id, lock=True)
            if row.finished_at is None:
                await BulkOperations(transaction.connection).change(id, status=status, finished_at=now())

    async def _step(self, id: str) -> Did:
        try:
            limit = await self._limit(id)
            return "nothing" if limit <= 0 else await self._page(id, limit)
        except NotFound:
            return "all"

    async def _limit(self, id: str) -> int:
        async with self._database.read() as connection:
            operations = BulkOperations(connection)
            if (await operations.get(id)).action != "retry":
                return PAGE
            return min(PAGE, RETRIED_AT_ONCE - await operations.retried_and_unfinished(id))

    async def _page(self, id: str, limit: int) -> Did:
        async with self._database.write() as transaction:
            operations = BulkOperations(transaction.connection)
            row = await operations.get(id, lock=True)
            if row.finished_at is not None:
                return "all"
            found = await operations.next_runs(row, limit)
            runs = await lock_runs(transaction.connection, [run.id for run in found.rows]) if found.rows else []
            done = Done()
            for run in runs:
                await self._do(transaction, row, run, done)
            await operations.change(
                id,
                cursor=found.next_page or row.cursor,
                done_count=row.done_count + done.count,
                skipped_count=row.skipped_count + len(found.rows) - done.count,
                **({} if found.next_page else {"status": "completed", "finished_at": now()}),
            )
        await told(done.deliveries)
        for run in done.stopped:
            self._live.stop(run.id)
        return "something" if found.next_page else "all"

    async def _do(self, transaction: Transaction, row: BulkOperationRow, run: RunRow, done: Done) -> None:
        commands = RunCommands(transaction.connection, Journal(transaction.connection, transaction.appended))
        match row.action:
            case "cancel" if run.status in ELIGIBLE["cancel"]:
                tree = await commands.cancel(run, row.reason)
                done.deliveries += [self._commands.cancel(run.id)] if tree else []
            case "terminate" if run.status in ELIGIBLE["terminate"]:
                tree = await commands.terminate(run, row.reason)
                done.deliveries += [self._commands.terminate(run.id, row.reason)] if tree else []
            case "retry":
                try:
                    run = await commands.retry(run, bulk_id=row.id)
                except Conflict:  # it was retried already, or its session has gone on
                    return
                if await Queues(transaction.connection).activate(run.session_id, run.id):
                    done.deliveries.append(self._commands.start(run_start(run, self._routes)))
                tree = []
            case _:  # over by now
                return
        done.count += 1
        done.stopped += tree
