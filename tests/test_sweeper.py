"""The sweeper: what a crash left between a row and Temporal is delivered, and what ended outside is settled."""

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col
from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from api.services.answers import AnswerService
from domain.events import TextContent
from storage.runs import Runs
from storage.tables import SessionRow
from tests.service import RunView, ServiceThread, Workspace
from tests.sweeping import LONG, age, crashed, crashed_starts, submitted, sweep
from workflows.client import RunClient


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
