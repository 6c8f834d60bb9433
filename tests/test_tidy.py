"""What is cleaned up on disk: directories of sessions that have long been idle, and what no row names."""

import os
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col

from activities.tidy import Tidy
from domain.clock import now
from domain.sessions import Keep
from storage.tables import SessionRow
from tests.files import CSV, directory, results, stored, upload, use
from tests.service import ServiceThread, Workspace
from tests.sweeping import sweep
from tools.store import FileStore

TOOLS = ["read", "write", "publish_artifact"]


def tidy(service: ServiceThread, keep: timedelta) -> None:
    assert service.call(Tidy(service.parts.database, service.parts.files, keep, Keep()).run(60))


def age(service: ServiceThread, session_id: str, days: int) -> None:
    async def change() -> None:
        statement = update(SessionRow).where(col(SessionRow.id) == session_id).values(updated_at=now() - timedelta(days=days))
        async with service.parts.database.write() as transaction:
            await transaction.connection.execute(statement)

    service.call(change())


def test_the_directory_of_an_idle_session_goes_and_what_was_given_or_published_stays(workspace: Workspace) -> None:
    service = workspace.service
    file = upload(workspace)["id"]
    resources = [{"type": "file", "file_id": file, "mount_path": "in.csv"}]
    steps = [use("write", file_path="own.txt", content="x"), use("publish_artifact", path="in.csv"), {"text": "ok"}]
    run = workspace.start(*steps, tools=TOOLS, resources=resources)
    session = run.wait()["session_id"]
    young = workspace.start(use("write", file_path="own.txt", content="x"), {"text": "ok"}, tools=TOOLS).wait()["session_id"]
    waiting = workspace.start(use("ask_user", question="?"), tools=["ask_user"])
    waiting.until(lambda row: row["status"] == "waiting")
    held = service.parts.files.directory(directory(workspace, young).parent.name, waiting.row["session_id"])
    held.mkdir()
    deep = directory(workspace, session)
    for _ in range(200):  # deeper than a recursion should follow
        deep = deep / "d"
        deep.mkdir()
    deep.parent.chmod(0)
    left = held.with_name(".sesn_left")
    (left / "x").mkdir(parents=True)
    unknown = stored(workspace, file)[0].with_name("artf_unknown")
    unknown.write_text("x")
    gone, strange = held.with_name("sesn_gone"), held.with_name("sesn_strange")
    gone.mkdir()
    strange.mkdir()
    for old in (unknown, gone):
        os.utime(old, (1, 1))
    age(service, session, 31)
    age(service, waiting.row["session_id"], 31)

    tidy(service, timedelta(days=30))

    assert not list(service.parts.files.root.glob(f"*/{session}"))
    assert not left.exists()
    assert [path.exists() for path in (unknown, gone, strange)] == [False, False, True]
    assert held.exists()  # a run is at work there
    assert (directory(workspace, young) / "own.txt").exists()
    (artifact,) = workspace.get(f"/v1/sessions/{session}/artifacts")["data"]
    assert workspace.http.get(f"/v1/artifacts/{artifact['id']}/content").content == CSV
    again = workspace.start(use("read", file_path="in.csv"), {"text": "ok"}, agent=run.row["agent"]["id"], session_id=session)
    assert results(again) == ["name,price\nÄpfel,3"]
    waiting.command("cancel")


def test_the_sweeper_cleans_up_and_what_cannot_be_removed_holds_up_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = workspace.service
    stuck, after = (
        workspace.start(use("write", file_path="own.txt", content="x"), {"text": "ok"}, tools=TOOLS).wait()["session_id"]
        for _ in range(2)
    )
    folders = [directory(workspace, session) for session in (stuck, after)]
    for session in (stuck, after):
        age(service, session, 31)
    remove = FileStore.remove_directory

    def refuse_one(self: FileStore, workspace_id: str, session_id: str) -> None:
        if session_id == stuck:
            raise PermissionError("somebody else's")
        remove(self, workspace_id, session_id)

    monkeypatch.setattr(FileStore, "remove_directory", refuse_one)
    sweep(service)

    assert [folder.exists() for folder in folders] == [True, False]


def test_a_session_that_goes_on_while_others_are_cleaned_up_keeps_its_files(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = workspace.service
    agent = workspace.agent(tools=TOOLS)["id"]
    write = (use("write", file_path="own.txt", content="x"), {"text": "ok"})
    sessions = [workspace.start(*write, agent=agent).wait()["session_id"] for _ in range(2)]
    for session in sessions:
        age(service, session, 31)
    remove = FileStore.remove_directory

    def go_on(self: FileStore, workspace_id: str, session_id: str) -> None:
        remove(self, workspace_id, session_id)
        if session_id in sessions:
            monkeypatch.setattr(FileStore, "remove_directory", remove)
            (other,) = {*sessions} - {session_id}
            workspace.start(*write, agent=agent, session_id=other).wait()

    monkeypatch.setattr(FileStore, "remove_directory", go_on)
    tidy(service, timedelta(days=30))

    assert sum(folder.exists() for session in sessions for folder in service.parts.files.root.glob(f"*/{session}/own.txt")) == 1
