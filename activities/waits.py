"""What is written while a run waits, and when a wait is over."""

import json

from temporalio import activity

from domain.clock import now, wire
from domain.commands import RunRef, WakeInput
from domain.errors import NotFound
from domain.events import AgentToolResult, ExternalEvent, TextContent
from domain.runs import RunStatus
from storage.database import Database, Transaction
from storage.decisions import state_of_session
from storage.journal import Draft, Journal, read_one, written
from storage.runs import Runs
from storage.waits import Waits, standing

TIMED_OUT = "Nothing came in time."


class WaitActivities:
    """Database only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="waits.idle")
    async def idle(self, run: RunRef) -> None:
        """Say that the session is idle, with what it waits for: the tools that ran beside that are done."""
        async with self._database.write() as transaction:
            row = await Runs(transaction.connection).get(run.run_id, lock=True)
            waiting = await Waits(transaction.connection).open_of(run.run_id)
            drafts = state_of_session(waiting, had_people=False)
            if drafts and not RunStatus(row.status).over:
                first = min(wait.tool_use_id for wait in waiting)
                await _journal(transaction).append(run.session_id, run.run_id, drafts, key=f"{run.run_id}/{first}/idle")

    @activity.defn(name="waits.wake")
    async def wake(self, wake: WakeInput) -> None:
        """Give a tool use whose wait is over its result."""
        async with self._database.write() as transaction:
            waits, journal = Waits(transaction.connection), _journal(transaction)
            key = f"{wake.run_id}/{wake.tool_use_id}/result"
            if await written(transaction.connection, wake.session_id, key):
                return
            try:
                row = await Runs(transaction.connection).get(wake.run_id, lock=True)
                if RunStatus(row.status).over:
                    return
                wait = await waits.get(wake.session_id, wake.tool_use_id)
            except NotFound:
                return
            # Its event may have come in the last moment, and the signal that says so be on its way.
            answer_id = wait.answer_id or wake.event_id
            await waits.close(wake.tool_use_id, None)
            text, is_error = f"It is {wire(now())} now.", False
            if wait.kind == "event":
                text, is_error = TIMED_OUT, True
                if answer_id is not None:
                    event = (await read_one(transaction.connection, wake.session_id, answer_id)).payload
                    assert isinstance(event, ExternalEvent)
                    text, is_error = json.dumps({"type": event.event_type, "data": event.data}, ensure_ascii=False), False
            result = AgentToolResult(tool_use_id=wake.tool_use_id, content=(TextContent(text=text),), is_error=is_error)
            changes = standing(await waits.open_of(wake.run_id))
            await journal.append(wake.session_id, wake.run_id, [Draft(result)], key=key, run_changes=changes)


def _journal(transaction: Transaction) -> Journal:
    return Journal(transaction.connection, transaction.appended)
