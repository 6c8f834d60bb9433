"""The sweeper: what a crash left between a row and Temporal is delivered, and what ended outside is settled."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import update
from sqlmodel import col
from temporalio.client import Client, WorkflowFailureError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from activities.batches import BatchActivities
from activities.bulk import BulkActivities
from activities.sweep import SweepActivities
from activities.tidy import Tidy
from activities.unfinished import Unfinished
from api.services.answers import AnswerService
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
from storage.tables import RunRow, SessionRow
from tests.service import RunView, ServiceThread, Workspace
from worker import Parts
from workflows.client import RunClient

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


def sweeper_of(parts: Parts, client: Client, commands: RunClient, routes: Mapping[str, Route]) -> SweepActivities:
    tidy = Tidy(parts.database, parts.files, timedelta(days=30), Keep())
    batches = BatchActivities(parts.database, parts.live, commands, routes)
    bulk = BulkActivities(parts.database, parts.live, commands, routes)
    unfinished = Unfinished(parts.database, client, commands, batches, bulk)
    return SweepActivities(parts.database, client, commands, routes, tidy, unfinished)


def sweep(service: ServiceThread, since: datetime | None = None) -> SweepResult:
    """One sweep now, beside those of the schedule; with `since` not the thorough one that a process begins with."""

    async def once() -> SweepResult:
        client = await Client.connect(service.temporal_address, data_converter=pydantic_data_converter)
        commands = RunClient(client, service.settings.task_queue)
        sweeper = sweeper_of(service.parts, client, commands, service.parts.routes)
        if since is not None:
            await ActivityEnvironment().run(sweeper.run, SweepInput())
        return await ActivityEnvironment().run(sweeper.run, SweepInput(since=since))

    return service.call(once())


def test_a_start_that_was_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    (run,) = crashed_starts(service, workspace, 1)
    assert run.row["status"] == "queued"
    sweep(service)
    assert run.wait(10)["output"] == "patience"


def test_a_backlog_is_one_sweep(service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.sweep.PAGE", 5)
    runs = crashed_starts(service, workspace, 23)
    sweep(service)
    assert {run.wait(40)["output"] for run in runs} == {"patience"}
    assert all(run.types().count("run.started") == 1 for run in runs)


def test_what_is_delivered_and_waits_is_left_alone(service: ServiceThread, workspace: Workspace) -> None:
    (run,) = crashed_starts(service, workspace, 1)

    async def deliver_to_nobody() -> None:
        client = await Client.connect(service.temporal_address)
        await client.start_workflow("agent_run", id=run.id, task_queue="nobody-serves-this")

    service.call(deliver_to_nobody())
    sweep(service)
    age(service, run.id)
    assert sweep(service).delivered == 0
    assert run.row["status"] == "queued"
    run.command("terminate")
    assert run.wait(10)["status"] == "terminated"


def test_a_workflow_that_cannot_go_on_is_said_on_its_run(tmp_path: Path) -> None:
    dynamic = ("system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute=1",)
    with ServiceThread(tmp_path, None, dynamic=dynamic) as service, service.workspace() as workspace:
        (run,) = crashed_starts(service, workspace, 1)

        async def start() -> None:
            client = await Client.connect(service.temporal_address)
            await client.start_workflow("agent_run", "no input of ours", id=run.id, task_queue=service.settings.task_queue)

        service.call(start())
        deadline = time.monotonic() + 10
        while run.row["error"] is None and time.monotonic() < deadline:
            sweep(service)
        sweep(service)
        row = run.row
        assert (row["status"], row["error"]["code"]) == ("queued", "workflow_stuck")
        assert run.types().count("session.error") == 1
        run.command("terminate")
        assert (row := run.wait(10))["status"] == "terminated"
        assert row["error"] is None


def test_a_pause_before_the_start_was_delivered(service: ServiceThread, workspace: Workspace) -> None:
    (run,) = crashed_starts(service, workspace, 1)
    crashed(service, run.id, lambda runs, unit: runs.pause(unit, run.id, "step"))
    sweep(service)
    run.until(lambda row: row["status"] == "paused", 5)
    assert run.types()[-3:] == ["run.started", "session.status_idle", "run.paused"], "a story begins before it pauses"
    run.command("resume")
    assert run.wait(10)["output"] == "patience"
    assert run.types().count("run.started") == 1


def test_a_pause_and_a_resume_that_were_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start(LONG, {"text": "The rest."})
    run.until(lambda row: row["status"] == "running")

    crashed(service, run.id, lambda runs, unit: runs.pause(unit, run.id, "now"))
    sweep(service)
    run.until(lambda row: row["status"] == "paused", 5)
    crashed(service, run.id, lambda runs, unit: runs.resume(unit, run.id))
    sweep(service)
    assert run.wait(10)["output"] == "The rest."
    assert run.types().count("run.paused") == 1


def test_a_cancel_that_was_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start(LONG)
    run.until(lambda row: row["status"] == "running")
    crashed(service, run.id, lambda runs, unit: runs.cancel(unit, run.id, "enough"))
    sweep(service)
    assert run.wait(10)["status"] == "cancelled"
    assert run.events()[-1]["reason"] == "enough"


def test_a_terminate_that_was_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start(LONG)
    run.until(lambda row: row["status"] == "running")
    crashed(service, run.id, lambda runs, unit: runs.terminate(unit, run.id, "now"))
    sweep(service)
    assert run.wait(10)["status"] == "terminated"


@pytest.mark.parametrize("command", ["cancel", "terminate"])
def test_a_run_stopped_before_it_ever_started(service: ServiceThread, workspace: Workspace, command: str) -> None:
    (run,) = crashed_starts(service, workspace, 1)
    crashed(service, run.id, lambda runs, unit: getattr(runs, command)(unit, run.id, "never mind"))
    sweep(service)
    row = run.wait(5)
    assert row["status"] == {"cancel": "cancelled", "terminate": "terminated"}[command]
    assert run.events()[-1]["reason"] == "never mind"
    assert "run.started" not in run.types()


def test_answers_that_were_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    """Of two questions, the second is answered by a request that lives, the first by one that dies."""
    two = {"tools": [{"name": "ask_user", "input": {"question": question}} for question in ("Which colour?", "Which size?")]}
    run = workspace.start(two, {"text": "Thanks."}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")

    answers = AnswerService(RunClient(service.temporal))  # whose delivery is not reached
    crashed(service, run.id, lambda _, unit: answers.answer_first(unit, run.id, (TextContent(text="blue"),)))
    run.command("input", {"content": "large"})
    age(service, run.id)
    sweep(service)

    assert run.wait(10)["output"] == "Thanks."
    events = run.events()
    asked = {e["tool_use_id"]: e["question"] for e in events if e["type"] == "agent.question"}
    results = {asked[e["tool_use_id"]]: e["content"][0]["text"] for e in events if e["type"] == "agent.tool_result"}
    assert results == {"Which colour?": "blue", "Which size?": "large"}


def test_a_retry_that_was_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    """The workflow of the attempt before is over: that is not the end of this one."""
    agent = workspace.agent(model="demo:echo")["id"]
    run = workspace.start(text="once more " * 200, agent=agent)
    run.until(lambda row: row["status"] == "running")
    run.command("cancel")
    assert run.wait(10)["status"] == "cancelled"

    crashed(service, run.id, lambda runs, unit: runs.retry(unit, run.id))
    sweep(service)
    row = run.wait(10)
    assert (row["status"], row["attempt"]) == ("completed", 2)


def test_a_retry_that_was_terminated_before_it_began_is_not_started_again(service: ServiceThread, workspace: Workspace) -> None:
    agent = workspace.agent(model="demo:echo")["id"]
    run = workspace.start(text="once more " * 200, agent=agent)
    run.until(lambda row: row["status"] == "running")
    run.command("cancel")
    run.wait(10)
    stored = crashed(service, run.id, lambda runs, unit: runs.retry(unit, run.id))
    start = {"run_id": run.id, "session_id": stored.session_id, "workspace_id": stored.workspace_id, "agent": "a", "model": "m"}

    async def start_and_terminate() -> None:
        client = await Client.connect(service.temporal_address)
        with contextlib.suppress(WorkflowFailureError):
            await client.get_workflow_handle(run.id).result()  # the row is over a little before the workflow is closed
        begun: dict[str, object] = {**start, "limits": {}, "attempt": 2}
        handle = await client.start_workflow("agent_run", begun, id=run.id, task_queue="nobody-serves-this")
        await handle.terminate()

    service.call(start_and_terminate())
    sweep(service)
    assert run.wait(10)["status"] == "terminated"
    assert run.types().count("run.started") == 1


@pytest.mark.parametrize(
    ("ending", "status", "code"), [("terminate", "terminated", None), ("timeout", "failed", "workflow_timed_out")]
)
def test_a_run_that_ended_outside_and_the_queue_behind_it(
    service: ServiceThread, workspace: Workspace, ending: str, status: str, code: str | None
) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    (first, stored) = submitted(service, workspace, session, json.dumps({"script": [LONG]}))
    following = {"content": json.dumps({"script": [{"text": "Next."}]})}
    second = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", following)["run"]["id"])

    async def end() -> None:
        client = await Client.connect(service.temporal_address)
        start = {"run_id": first.id, "session_id": session, "workspace_id": stored.workspace_id, "agent": "a", "model": "m"}
        handle = await client.start_workflow(
            "agent_run",
            {**start, "limits": {}},
            id=first.id,
            task_queue=service.settings.task_queue if ending == "terminate" else "nobody-serves-this",
            run_timeout=timedelta(seconds=1) if ending == "timeout" else None,
        )
        if ending == "terminate":
            await handle.terminate()
        else:
            await asyncio.sleep(1.5)

    service.call(end())
    deadline = time.monotonic() + 5
    while first.row["finished_at"] is None and time.monotonic() < deadline:  # visibility is a moment behind
        sweep(service, datetime.now(UTC))
    row = first.row
    assert (row["status"], row["error"] and row["error"]["code"]) == (status, code)
    assert second.wait(10)["output"] == "Next."


def submitted(service: ServiceThread, workspace: Workspace, session: str, text: str) -> tuple[RunView, RunRow]:
    """A turn that was committed in an idle session and never started."""
    earlier = workspace.post("/v1/runs", {"agent": workspace.agent(model="demo:echo")["id"], "input": "x"})["id"]
    new = NewRun((TextContent(text=text),))
    _, row = crashed(service, earlier, lambda runs, unit: runs.submit(unit, session, new))
    return RunView(workspace, row.id), row


def test_a_sick_workflow_does_not_hold_up_the_others(service: ServiceThread, workspace: Workspace) -> None:
    """A workflow whose every task fails answers no query, and its pause can never be delivered."""
    sick, well = crashed_starts(service, workspace, 2)

    async def start() -> None:
        client = await Client.connect(service.temporal_address)
        await client.start_workflow("no_such_type", id=sick.id, task_queue=service.settings.task_queue)

    service.call(start())
    crashed(service, sick.id, lambda runs, unit: runs.pause(unit, sick.id, "now"))
    crashed(service, sick.id, lambda runs, unit: Runs(unit.connection).change(sick.id, status="running"))
    age(service, well.id)  # younger than the sick one
    sweep(service)
    assert well.wait(10)["status"] == "completed"
    sick.command("terminate")
    assert sick.wait(10)["status"] == "terminated"


@pytest.mark.parametrize("active", [None, "the finished run", "run_that_never_was"])
def test_a_session_whose_active_run_is_none(service: ServiceThread, workspace: Workspace, active: str | None) -> None:
    """As no code of ours leaves it: a restored backup may."""
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    first = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": "one"})["run"]["id"])
    first.wait()
    second, _ = submitted(service, workspace, session, "two")
    named = first.id if active == "the finished run" else active

    async def misname() -> None:
        async with service.parts.database.write() as transaction:
            statement = update(SessionRow).where(col(SessionRow.id) == session).values(active_run_id=named)
            await transaction.connection.execute(statement)

    service.call(misname())
    age(service, second.id)
    sweep(service)
    assert second.wait(10)["output"] == "two"
    assert workspace.get(f"/v1/sessions/{session}")["active_run_id"] is None


def test_a_run_whose_end_the_database_has_lost(service: ServiceThread, workspace: Workspace) -> None:
    """A backup was restored, or a power cut took the last commits: for Temporal the run is completed."""
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    run, stored = submitted(service, workspace, session, "lost")

    async def complete() -> None:
        client = await Client.connect(service.temporal_address)
        await client.execute_workflow("settle", "run_that_never_was", id=run.id, task_queue=service.settings.task_queue)

    service.call(complete())
    crashed(service, run.id, lambda runs, unit: Runs(unit.connection).change(run.id, status="running"))
    row = run.row
    for _ in range(20):  # until Temporal's list knows what its history knows
        if row["finished_at"] is not None:
            break
        sweep(service)
        row = run.wait(0.5)
    assert (row["status"], row["error"]["code"]) == ("failed", "workflow_lost")
    assert stored.session_id == session


def test_a_deleted_schedule_comes_back(service: ServiceThread) -> None:
    async def delete_and_ensure() -> list[str]:
        client = await Client.connect(service.temporal_address)
        schedule_id = f"{service.settings.task_queue}-sweep"
        await client.get_schedule_handle(schedule_id).delete()
        runs = RunClient(client, service.settings.task_queue)
        keeping = [asyncio.create_task(runs.keep_sweeper()) for _ in range(4)]
        for _ in range(50):
            with contextlib.suppress(RPCError):
                found = await client.get_schedule_handle(schedule_id).describe()
                if found.info.num_actions:
                    break
            await asyncio.sleep(0.1)
        failed = [task for task in keeping if task.done()]
        for task in keeping:
            task.cancel()
        assert not failed
        found = [schedule.id async for schedule in await client.list_schedules()]
        return [id for id in found if id == schedule_id]

    assert service.call(delete_and_ensure()) == [f"{service.settings.task_queue}-sweep"]
