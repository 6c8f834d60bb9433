"""What tests of the sweeper share: processes that died between the commit and its delivery, and a sweep now."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import update
from sqlmodel import col
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.batches import BatchActivities
from activities.bulk import BulkActivities
from activities.sweep import SweepActivities
from activities.tidy import Tidy
from activities.unfinished import Unfinished
from api.services.contents import ContentService
from api.services.runs import NewRun, RunService
from api.transaction import Unit
from domain.clock import now
from domain.commands import SweepInput, SweepResult
from domain.events import TextContent
from domain.keys import SCOPES, Principal
from domain.sessions import Keep
from storage.runs import Runs
from storage.starts import Route
from storage.tables import RunRow
from tests.service import RunView, ServiceThread, Workspace
from worker import Parts
from workflows.client import RunClient
from workflows.payloads import data_converter

T = TypeVar("T")

LONG = {"text": "word " * 400, "delay_ms": 50}
ASKS = {"tools": [{"name": "ask_user", "input": {"question": "Which colour?"}}]}


def crashed(service: ServiceThread, run_id: str, command: Callable[[RunService, Unit], Awaitable[T]]) -> T:
    """Do what the API does for a command, and die between the commit and Temporal."""

    async def commit() -> T:
        async with service.parts.database.read() as connection:
            workspace_id = (await Runs(connection).get(run_id)).workspace_id
        client = RunClient(await Client.connect(service.temporal_address))
        contents = ContentService(service.parts.files, service.parts.providers)
        runs = RunService(client, service.parts.live, service.parts.routes, contents)
        async with service.parts.database.write() as transaction:
            caller = Principal(workspace_id=workspace_id, key_id="", scopes=frozenset(SCOPES))
            return await command(runs, Unit(transaction.connection, caller, transaction))

    found = service.call(commit())
    age(service, run_id)
    return found


def crashed_starts(service: ServiceThread, workspace: Workspace, count: int, **agent: str) -> list[RunView]:
    """Runs, each in a session of its own, that were committed and never started."""
    agent_id = workspace.agent(**{"model": "demo:echo", **agent})["id"]
    first = workspace.start(text="first", agent=agent_id)
    first.wait()
    sessions = [workspace.post("/v1/sessions", {"agent": agent_id})["id"] for _ in range(count)]

    async def submit(runs: RunService, unit: Unit) -> list[str]:
        new = NewRun((TextContent(text="patience"),))
        return [(await runs.submit(unit, session, new))[1].id for session in sessions]

    found = crashed(service, first.id, submit)
    for run_id in found:
        age(service, run_id)
    return [RunView(workspace, run_id) for run_id in found]


def age(service: ServiceThread, run_id: str) -> None:
    """Make a run's row and its commands a minute older, so that nobody can be delivering them any more."""
    past = now() - timedelta(minutes=1)
    asked = ("pause_requested_at", "resume_requested_at", "answered_at", "cancel_requested_at", "terminate_requested_at")

    async def change() -> None:
        async with service.parts.database.write() as transaction:
            row = await Runs(transaction.connection).get(run_id)
            columns = {name: past for name in asked if getattr(row, name) is not None}
            statement = update(RunRow).where(col(RunRow.id) == run_id).values(touched_at=past, **columns)
            await transaction.connection.execute(statement)

    service.call(change())


def submitted(service: ServiceThread, workspace: Workspace, session: str, text: str) -> tuple[RunView, RunRow]:
    """A turn that was committed in an idle session and never started."""
    earlier = workspace.post("/v1/runs", {"agent": workspace.agent(model="demo:echo")["id"], "input": "x"})["id"]
    new = NewRun((TextContent(text=text),))
    _, row = crashed(service, earlier, lambda runs, unit: runs.submit(unit, session, new))
    return RunView(workspace, row.id), row


def sweeper_of(parts: Parts, client: Client, commands: RunClient, routes: Mapping[str, Route]) -> SweepActivities:
    tidy = Tidy(parts.database, parts.files, timedelta(days=30), Keep())
    batches = BatchActivities(parts.database, parts.live, commands, routes)
    bulk = BulkActivities(parts.database, parts.live, commands, routes)
    unfinished = Unfinished(parts.database, client, commands, batches, bulk)
    return SweepActivities(parts.database, client, commands, routes, tidy, unfinished)


def sweep(service: ServiceThread, since: datetime | None = None) -> SweepResult:
    """One sweep now, beside those of the schedule; with `since` not the thorough one that a process begins with."""

    async def once() -> SweepResult:
        client = await Client.connect(service.temporal_address, data_converter=data_converter)
        commands = RunClient(client, service.settings.task_queue)
        sweeper = sweeper_of(service.parts, client, commands, service.parts.routes)
        if since is not None:
            await ActivityEnvironment().run(sweeper.run, SweepInput())
        return await ActivityEnvironment().run(sweeper.run, SweepInput(since=since))

    return service.call(once())
