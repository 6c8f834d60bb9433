"""A deleted session is gone everywhere: streams, rows, histories in Temporal."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import pytest
from anthropic import Anthropic
from sqlalchemy import func, insert, select, update
from sqlmodel import col
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.forgotten import ForgottenWorkflows
from api.tail import Tails, Viewer
from domain.clock import now
from domain.ids import new_id
from live.memory import MemoryBus
from storage.tables import EventRow, ForgottenWorkflowRow, RunRow
from tests.service import RunView, ServiceThread, Workspace

TITLE = {"text": "Nothing to see"}


def new_session(workspace: Workspace, **agent: Any) -> str:
    return workspace.post("/v1/sessions", {"agent": workspace.agent(**agent)["id"]}, expect=201)["id"]


def say(workspace: Workspace, session: str, *steps: dict[str, Any]) -> RunView:
    body = {"content": json.dumps({"script": steps})}
    return RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", body)["run"]["id"])


def delete(workspace: Workspace, session: str, expect: int = 200) -> None:
    response = workspace.http.delete(f"/v1/sessions/{session}")
    assert response.status_code == expect, response.text


def execute(service: ServiceThread, statement: Any) -> Any:
    async def run() -> Any:
        async with service.parts.database.write() as transaction:
            found = await transaction.connection.execute(statement)
            return found.all() if found.returns_rows else None

    return service.call(run())


def forgotten(service: ServiceThread, *ids: str) -> set[str]:
    """Those of the workflows that Temporal is still to delete."""
    mine = select(col(ForgottenWorkflowRow.workflow_id)).where(col(ForgottenWorkflowRow.workflow_id).in_(ids))
    return {row.workflow_id for row in execute(service, mine)}


def executions(service: ServiceThread, *ids: str) -> list[tuple[str, str]]:
    """Of these workflows, as Temporal's list has them."""

    async def find() -> list[tuple[str, str]]:
        query = " OR ".join(f"WorkflowId = '{id}'" for id in ids)
        return [(found.id, found.run_id) async for found in service.temporal.list_workflows(query)]

    return service.call(find())


def known(service: ServiceThread, workflow_id: str, run_id: str) -> bool:
    """Whether Temporal has that execution's history."""

    async def fetch() -> bool:
        try:
            await service.temporal.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    return service.call(fetch())


def test_temporal_forgets_all_attempts_and_what_went_with_them(service: ServiceThread, workspace: Workspace) -> None:
    session, other = new_session(workspace, model="demo:demo"), new_session(workspace)
    first = say(workspace, session, {"text": "One."}, TITLE)
    first.wait()
    failed = say(workspace, session, {"fail": {"code": "rejected"}})
    failed.wait()
    failed.command("retry")
    failed.until(lambda row: row["attempt"] == 2 and row["finished_at"] is not None)
    stopped = say(workspace, session, {"text": "long ", "words": 5000, "delay_ms": 50})
    stopped.until(lambda row: row["status"] == "running")
    stopped.command("terminate")
    stopped.wait()
    spared = say(workspace, other, {"text": "Two."})
    spared.wait()
    ids = (first.id, failed.id, stopped.id, f"settle-{stopped.id}", f"title-{session}")
    deadline = time.monotonic() + 15
    while len(before := executions(service, *ids)) < 6:
        assert time.monotonic() < deadline, before
        time.sleep(0.1)

    delete(workspace, session)

    assert forgotten(service, *ids, f"settle-{failed.id}") >= {first.id, failed.id}
    deadline = time.monotonic() + 80  # the sweeper asks every ten seconds, and Temporal takes some twenty to do it
    while left := [execution for execution in before if known(service, *execution)] or executions(service, *ids):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert executions(service, spared.id)
    # Only when Temporal has been found to know nothing of them any more, they are let go.
    later = update(ForgottenWorkflowRow).where(col(ForgottenWorkflowRow.workflow_id).in_(ids))
    execute(service, later.values(due_at=now() - timedelta(seconds=1), created_at=now() - timedelta(minutes=1)))
    service.call(ForgottenWorkflows(service.parts.database, service.temporal).delete())
    assert forgotten(service, *ids) == set()


def test_of_what_was_copied_temporal_knows_nothing(service: ServiceThread, workspace: Workspace) -> None:
    session = new_session(workspace)
    say(workspace, session, {"text": "One."}).wait()
    fork = workspace.post(f"/v1/sessions/{session}/fork")["session"]["id"]
    (copied,) = workspace.get("/v1/runs", session_id=fork)["data"]

    delete(workspace, fork)

    assert forgotten(service, copied["id"]) == set()


def test_a_deletion_while_temporal_is_away_is_remembered(service: ServiceThread) -> None:
    """And one that it will never carry out is given up in the end."""

    async def refuse() -> None:
        nobody = await Client.connect("127.0.0.1:9", lazy=True)
        with pytest.raises((RPCError, RuntimeError)):
            await ForgottenWorkflows(service.parts.database, nobody).delete()

    young, old, at = new_id("run"), new_id("run"), now() + timedelta(minutes=5)
    rows = [
        {"workflow_id": id, "created_at": now() - timedelta(days=days), "due_at": at} for id, days in ((young, 1), (old, 31))
    ]
    execute(service, insert(ForgottenWorkflowRow).values(rows))
    due = new_id("run")
    rows = [{"workflow_id": due, "created_at": now() - timedelta(days=1), "due_at": now()}]
    execute(service, insert(ForgottenWorkflowRow).values(rows))
    service.call(refuse())
    service.call(ForgottenWorkflows(service.parts.database, service.temporal).delete())
    assert forgotten(service, young, old, due) == {young}


def test_a_session_at_work_is_neither_deleted_nor_archived_and_an_archived_one_is_read_only(workspace: Workspace) -> None:
    service, session = workspace.service, new_session(workspace)
    run = say(workspace, session, {"text": "long ", "words": 5000, "delay_ms": 20})
    run.until(lambda row: row["status"] == "running")
    delete(workspace, session, expect=409)
    workspace.post(f"/v1/sessions/{session}/archive", expect=409)
    assert forgotten(service, run.id) == set()
    run.command("cancel")
    run.wait()

    assert workspace.post(f"/v1/sessions/{session}/archive", expect=200)["archived_at"] is not None
    assert workspace.post(f"/v1/sessions/{session}/messages", {"content": "more"}, expect=409)["code"] == "archived"
    assert workspace.get("/v1/sessions")["data"] == []
    assert [found["id"] for found in workspace.get("/v1/sessions", include_archived=True)["data"]] == [session]
    assert workspace.get(f"/v1/sessions/{session}/events")["data"][0]["type"] == "user.message"
    delete(workspace, session)
    delete(workspace, session, expect=404)


def test_open_streams_end_with_session_deleted(workspace: Workspace) -> None:
    session = new_session(workspace)
    run = say(workspace, session, {"text": "One."})
    run.wait()
    path = f"/v1/sessions/{session}/events/stream"
    with ThreadPoolExecutor(4) as pool, Anthropic(base_url=workspace.service.url, api_key=workspace.key) as sdk:

        def as_the_sdk_sees_it() -> list[Any]:
            with sdk.beta.sessions.events.stream(session) as stream:
                return list(stream)

        whole = pool.submit(workspace.stream, path, after=0)
        live = pool.submit(workspace.stream, path)
        filtered = pool.submit(workspace.stream, path, types="agent.message")
        official = pool.submit(as_the_sdk_sees_it)
        time.sleep(1)
        delete(workspace, session)
        assert [frame.event for frame in whole.result(5)][-2:] == ["run.completed", "session.deleted"]
        (frame,) = live.result(5)
        assert (frame.event, frame.data["type"], frame.data["session_id"]) == ("session.deleted", "session.deleted", session)
        assert filtered.result(5) == []
        (event,) = official.result(5)
        assert (event.type, event.id[:5], isinstance(event.processed_at, datetime)) == ("session.deleted", "sevt_", True)
    assert workspace.http.get(path).status_code == 404


def test_streams_of_other_processes_notice_a_deletion(service: ServiceThread, workspace: Workspace) -> None:
    """Their tailers look by themselves: every 250 ms where no bus joins the processes, as here."""
    session = new_session(workspace)

    async def follow() -> list[str]:
        tails = Tails(service.parts.database, MemoryBus(0.25))
        async with aclosing(tails.follow(session, Viewer(after=0), 0)) as frames, asyncio.timeout(10):
            return [frame.type async for frame in frames if frame]

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(service.call, follow())
        time.sleep(1)
        delete(workspace, session)
        assert following.result(10) == ["session.deleted"]


def test_a_session_with_much_in_it_is_deleted_within_a_request(service: ServiceThread, workspace: Workspace) -> None:
    session = new_session(workspace)
    run = say(workspace, session, {"text": "One."})
    run.wait()
    (row,) = execute(service, select(RunRow).where(col(RunRow.id) == run.id))
    runs = [{**row._mapping, "id": new_id("run")} for _ in range(500)]
    events = [
        {
            "session_id": session,
            "seq": seq,
            "id": new_id("sevt"),
            "run_id": runs[seq % 500]["id"],
            "type": "agent.message",
            "append_key": f"much/{seq}",
            "append_index": 0,
            "created_at": now(),
            "processed_at": now(),
            "payload": {"type": "agent.message", "content": [{"type": "text", "text": "x" * 500}]},
        }
        for seq in range(1_000, 11_000)
    ]
    execute(service, insert(RunRow).values(runs[:100]))
    for at in range(100, 500, 100):
        execute(service, insert(RunRow).values(runs[at : at + 100]))
    for at in range(0, 10_000, 100):
        execute(service, insert(EventRow).values(events[at : at + 100]))

    delete(workspace, session)

    for left in (RunRow, EventRow):
        assert execute(service, select(func.count()).select_from(left).where(col(left.session_id) == session))[0][0] == 0
    service.call(ForgottenWorkflows(service.parts.database, service.temporal).delete())
    ids = [one["id"] for one in runs]
    execute(service, update(ForgottenWorkflowRow).where(col(ForgottenWorkflowRow.workflow_id).in_(ids)).values(due_at=now()))
    service.call(ForgottenWorkflows(service.parts.database, service.temporal).delete())
    assert forgotten(service, *ids) == set()
