"""A full disk, a locked or a broken database: an error that says so, and never a lost event."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import pytest
from sqlalchemy import text

from domain.errors import Unavailable
from storage.database import Transaction
from tests.durability.process import Machine
from tests.service import RunView, ServiceThread, Workspace, is_delta
from tests.test_approvals import asking, decide, files, pending, write

pytestmark = pytest.mark.single_database

SLOW = {"text": "word " * 60, "delay_ms": 30, "tools": [{"name": "glob", "input": {"pattern": "*"}}]}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    with ServiceThread(tmp_path_factory.mktemp("troubled"), None) as running:
        yield running


async def limit_pages(service: ServiceThread, pages: int) -> None:
    """Let the database grow to so many pages and no further, as a full disk would; 0: to where it is."""
    async with service.parts.database.write() as transaction:
        await transaction.connection.execute(text(f"PRAGMA max_page_count={pages or 1}"))


def whole(run: RunView, workspace: Workspace) -> None:
    row = run.wait(60)
    events = workspace.get(f"/v1/sessions/{row['session_id']}/events", limit=1000)["data"]
    assert (row["status"], row["output"]) == ("completed", "end")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("agent.tool_result") == 1


def test_a_full_disk_refuses_and_loses_nothing(troubled: ServiceThread) -> None:
    with troubled.workspace() as workspace:
        agent = workspace.agent(tools=["glob"])["id"]
        run = workspace.start(SLOW, {"text": "end"}, agent=agent)
        run.stream(until=is_delta)
        troubled.call(limit_pages(troubled, 0))

        body = {"agent": agent, "input": "x" * 200_000}
        refused = workspace.post("/v1/runs", body, expect=503)
        assert refused["code"] == "unavailable"
        assert [r["id"] for r in workspace.get("/v1/runs")["data"]] == [run.id]
        troubled.call(limit_pages(troubled, 1_000_000_000))

        whole(run, workspace)
        workspace.post("/v1/runs", body, expect=201)


def test_a_locked_database_refuses_and_loses_nothing(troubled: ServiceThread) -> None:
    with troubled.workspace() as workspace:
        agent = workspace.agent(tools=["glob"])["id"]
        run = workspace.start(SLOW, {"text": "end"}, agent=agent)
        run.stream(until=is_delta)
        other = sqlite3.connect(troubled.settings.data_dir / "perdure.db", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            refused = workspace.post("/v1/runs", {"agent": agent, "input": "no"}, expect=503, timeout=60)
            assert time.monotonic() - began < 10
            assert workspace.get("/v1/runs")["data"]  # reading needs no lock
        finally:
            other.close()

        assert refused["retryable"]
        whole(run, workspace)
        assert [r["id"] for r in workspace.get("/v1/runs")["data"]] == [run.id]


def test_a_broken_database_file_is_named(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        machine.data.mkdir()
        (machine.data / "perdure.db").write_bytes(b"this is no database " * 500)
        done = subprocess.run(
            [sys.executable, "-c", "from commands.serve import up; up()"],
            cwd=tmp_path,
            env=machine.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "perdure.db" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_answer_whose_commit_was_not_reported_asks_once(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the connection to the database broke in that moment: it is written again, and found."""
    database, commit, lost = service.parts.database, service.parts.database.write, False

    @asynccontextmanager
    async def unreported() -> AsyncGenerator[Transaction]:
        nonlocal lost
        async with commit() as transaction:
            yield transaction
        asked = any(event.type == "approval.requested" for event in chain(*transaction.appended.values()))
        if asked and not lost:
            lost = True
            raise Unavailable("The connection broke off.")

    monkeypatch.setattr(database, "write", unreported)
    run = workspace.start({"text": "May I?", "tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))
    decide(workspace, pending(workspace, run)[0], decision="approve")
    assert run.wait()["output"] == "Done."
    assert lost
    (approval,) = workspace.get("/v1/approvals", run_id=run.id)["data"]
    assert run.types().count("approval.requested") == 1
    assert files(service, run) == ["a.txt"]
    assert approval["status"] == "approved"
