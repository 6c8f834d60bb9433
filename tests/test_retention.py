"""Retention: sessions whose time is over are deleted as a person would, and none that is at work."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from activities.tidy import Tidy
from domain.clock import now
from domain.sessions import Keep
from storage.tables import IdempotencyRow, SessionRow
from tests.files import directory, stored, upload, use
from tests.service import RunView, ServiceThread, Workspace
from tests.test_forgotten import execute, executions, forgotten, new_session, say


def tidy(service: ServiceThread, keep: Keep) -> None:
    assert service.call(Tidy(service.parts.database, service.parts.files, timedelta(days=999), keep).run(60))


def age(service: ServiceThread, session: str, *, idle: int = 0, archived: int | None = None) -> None:
    columns: dict[str, Any] = {"updated_at": now() - timedelta(days=idle)}
    if archived is not None:
        columns["archived_at"] = now() - timedelta(days=archived)
    execute(service, update(SessionRow).where(col(SessionRow.id) == session).values(**columns))


@pytest.fixture
def sessions(workspace: Workspace) -> Iterator[dict[str, str]]:
    """One of every kind, all of them idle for 40 days but the young ones."""
    service = workspace.service
    agent = {"tools": ["ask_user", "publish_artifact"]}
    asks = {"tools": [{"name": "ask_user", "input": {"question": "?"}}]}
    names = ("old", "archived", "young", "waiting", "paused", "queued", "paused, empty", "paused, queued")
    found = {name: new_session(workspace, **agent) for name in names}
    file = upload(workspace)["id"]
    publish = use("publish_artifact", path="in.csv")
    body = {"session_id": found["old"], "resources": [{"type": "file", "file_id": file, "mount_path": "in.csv"}]}
    script = json.dumps({"script": [publish, {"text": "ok"}]})
    RunView(workspace, workspace.post("/v1/runs", {**body, "input": script})["id"]).wait()
    for name in ("waiting", "queued"):
        say(workspace, found[name], asks).until(lambda row: row["status"] == "waiting")
    say(workspace, found["queued"], {"text": "later"})
    paused = say(workspace, found["paused"], {"text": "long ", "words": 5000, "delay_ms": 20})
    paused.until(lambda row: row["status"] == "running")
    paused.command("pause", {"mode": "now"})
    paused.until(lambda row: row["status"] == "paused")
    workspace.post(f"/v1/sessions/{found['archived']}/pause", expect=202)
    workspace.post(f"/v1/sessions/{found['archived']}/archive", expect=200)
    for name in ("paused, empty", "paused, queued"):
        workspace.post(f"/v1/sessions/{found[name]}/pause")
    say(workspace, found["paused, queued"], {"text": "later"})
    found["task"] = workspace.start({"text": "ok"}).wait()["session_id"]
    for name, session in found.items():
        age(service, session, idle=0 if name in ("young", "archived") else 40, archived=40 if name == "archived" else None)
    yield found
    for run in workspace.get("/v1/runs")["data"]:
        if run["finished_at"] is None:
            workspace.post(f"/v1/runs/{run['id']}/terminate")


def left(workspace: Workspace, sessions: dict[str, str]) -> set[str]:
    return {name for name, id in sessions.items() if workspace.http.get(f"/v1/sessions/{id}").is_success}


def test_sessions_whose_time_is_over_are_deleted_and_none_that_is_at_work(
    workspace: Workspace, sessions: dict[str, str]
) -> None:
    service, old = workspace.service, sessions["old"]
    (run,) = workspace.get("/v1/runs", session_id=old)["data"]
    (artifact,) = workspace.get(f"/v1/sessions/{old}/artifacts")["data"]
    folder = directory(workspace, old)

    tidy(service, Keep())
    tidy(service, Keep(idle=timedelta(days=41), archived=timedelta(days=41)))
    assert left(workspace, sessions) == set(sessions), "nothing is deleted by default, and nothing too early"

    tidy(service, Keep(archived=timedelta(days=30)))
    assert left(workspace, sessions) == set(sessions) - {"archived"}

    tidy(service, Keep(idle=timedelta(days=30)))
    assert left(workspace, sessions) == {"young", "waiting", "paused", "queued", "paused, queued"}
    assert (folder.exists(), stored(workspace, artifact["id"])) == (False, [])
    assert workspace.http.get(f"/v1/runs/{run['id']}").status_code == 404
    assert forgotten(service, run["id"]) | set(executions(service, run["id"])) != set()


def test_answers_under_idempotency_keys_go_after_a_day_though_nobody_sends_another(workspace: Workspace) -> None:
    service, mine = workspace.service, col(IdempotencyRow.key).in_(("old", "new"))
    agent = workspace.agent()["id"]
    for key in ("old", "new"):
        workspace.post("/v1/sessions", {"agent": agent}, headers={"Idempotency-Key": key})
    aged = update(IdempotencyRow).where(col(IdempotencyRow.key) == "old").values(created_at=now() - timedelta(hours=25))
    execute(service, aged)
    tidy(service, Keep())
    assert [row.key for row in execute(service, select(IdempotencyRow).where(mine))] == ["new"]
