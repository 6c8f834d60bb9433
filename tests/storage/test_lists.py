"""Lists cost what they show: a constant number of statements a page, and every one of them out of an index."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.service import ServiceThread, Workspace

LISTS = (
    "/v1/runs",
    "/v1/runs?status=completed",
    "/v1/runs?status=completed&status=failed",
    "/v1/runs?agent_id={agent}",
    "/v1/runs?agent_id={agent}&status=completed",
    "/v1/runs?session_id={session}",
    "/v1/runs?session_id={session}&status=completed",
    "/v1/runs?created_at[gt]=2020-01-01T00:00:00Z",
    "/v1/runs?created_at[lt]=2099-01-01T00:00:00Z&status=completed&order=asc",
    "/v1/sessions",
    "/v1/sessions?include_archived=true",
    "/v1/sessions?statuses=idle",
    "/v1/sessions?statuses=idle&include_archived=true",
    "/v1/sessions?statuses=idle&statuses=running",
    "/v1/sessions?agent_id={agent}",
    "/v1/sessions?agent_id={agent}&include_archived=true",
    "/v1/sessions?provider=demo",
    "/v1/sessions?provider=demo&include_archived=true",
    "/v1/sessions?model=demo:script",
    "/v1/sessions?model=demo:script&include_archived=true",
    "/v1/sessions?tag=both",
    "/v1/sessions?tag=both&statuses=idle&statuses=running",
    "/v1/sessions?metadata=k%3Dv",
    "/v1/sessions?forked_from={session}",
    "/v1/agents",
    "/v1/agents?include_archived=true",
    "/v1/agents?name=same",
    "/v1/agents/{agent}/versions",
    "/v1/sessions/{session}/events",
    "/v1/sessions/{session}/events?order=desc",
    "/v1/sessions/{session}/events?types=agent.message",
    "/v1/sessions/{session}/events?types=agent.message&types=run.failed",
    "/v1/sessions/{session}/items",
    "/v1/sessions/{session}/artifacts",
    "/v1/files",
    "/v1/runs/{run}/events",
)

FILTERS = {
    "status": "status",
    "statuses": "status",
    "agent_id": "agent_id",
    "session_id": "session_id",
    "forked_from": "forked_from_id",
    "name": "name",
    "provider": "provider",
    "model": "model",
    "tag": "label",
    "metadata": "label",
}
"""The columns that must find the rows, not only be compared."""

Statement = tuple[str, Any]


@contextmanager
def statements() -> Generator[list[Statement]]:
    """What is sent to databases, by anybody in this process."""
    seen: list[Statement] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith(("SELECT", "WITH")):
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class Shelf:
    """A workspace with some of everything."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.agent = workspace.agent(name="same", tools=["publish_artifact"])["id"]
        files = {"resources": [{"type": "file", "file_id": self.upload(), "mount_path": "a"}]}
        self.session = workspace.post("/v1/sessions", {"agent": self.agent, **files})["id"]
        self.run = ""
        self.fill(1)

    def upload(self) -> str:
        return self.workspace.http.post("/v1/files", files={"file": ("a", b"x")}).json()["id"]

    def fill(self, count: int) -> None:
        for _ in range(count):
            self.upload()
            publish = {"tools": [{"name": "publish_artifact", "input": {"path": "a"}}]}
            body = {"content": json.dumps({"script": [publish, {"text": "hi"}]})}
            self.run = self.workspace.post(f"/v1/sessions/{self.session}/messages", body)["run"]["id"]
            self.workspace.get(f"/v1/runs/{self.run}/wait")
            agent = self.workspace.agent(name="same")["id"]
            self.workspace.post("/v1/sessions", {"agent": agent, "tags": ["both"], "metadata": {"k": "v"}})
            self.workspace.post(f"/v1/sessions/{self.session}/fork", {})
            changed = {"system": f"version after {agent}"}
            self.workspace.post(f"/v1/agents/{self.agent}", changed)

    def list(self, path: str) -> tuple[list[dict[str, Any]], list[Statement]]:
        """The page, and the fewest statements that it took: others are at work in the same process."""
        tries: list[list[Statement]] = []
        data: list[dict[str, Any]] = []
        for _ in range(3):
            with statements() as seen:
                response = self.workspace.http.get(path.format(agent=self.agent, session=self.session, run=self.run))
            assert response.status_code == 200, response.text
            data = response.json()["data"]
            tries.append(seen)
        return data, min(tries, key=len)


def test_a_page_takes_as_many_statements_with_many_rows_as_with_one(workspace: Workspace) -> None:
    shelf = Shelf(workspace)
    few = {path: shelf.list(path) for path in LISTS}
    shelf.fill(5)
    many = {path: shelf.list(path) for path in LISTS}

    longer = [path for path in LISTS if len(many[path][0]) > len(few[path][0])]
    assert len(longer) >= len(LISTS) - 3  # one run's events are as many as before
    assert {path: len(many[path][1]) for path in LISTS} == {path: len(few[path][1]) for path in LISTS}
    assert max(len(found[1]) for found in many.values()) <= 4


@pytest.mark.single_database
def test_every_list_comes_out_of_an_index(service: ServiceThread, workspace: Workspace) -> None:
    shelf = Shelf(workspace)
    for path in LISTS:
        _, seen = shelf.list(path)
        plans = [service.call(_plan(service, statement, parameters)) for statement, parameters in seen]
        searched = " ".join(step for plan in plans for step in plan if step.startswith("SEARCH"))
        filters = [name for name in FILTERS if f"?{name}=" in path or f"&{name}=" in path]
        assert all(f"{FILTERS[name]}=?" in searched for name in filters), (path, plans)
        for plan in plans:
            # Sorting the few rows that were found under each of several conditions is fine; looking at all rows is not.
            scanned = [
                step
                for step in plan
                if re.match(r"SCAN (agents|agent_versions|sessions|session_labels|runs|events|files|artifacts)\b", step)
            ]
            sorted_all = "USE TEMP B-TREE FOR ORDER BY" in plan and "COMPOUND QUERY" not in plan
            assert not scanned, (path, plan)
            assert not sorted_all, (path, plan)


@pytest.mark.single_database
def test_a_search_looks_only_at_the_sessions_that_it_found(service: ServiceThread, workspace: Workspace) -> None:
    """Whatever the filter is: beginning with the sessions that meet it, it would look at all of them."""
    shelf = Shelf(workspace)
    for path in [path for path in LISTS if path.startswith("/v1/sessions?")]:
        _, seen = shelf.list(f"{path}&search=hi")
        (search,) = [statement for statement in seen if "row_number" in statement[0]]
        assert "JOIN sessions" not in search[0], "which Postgres turns round, with figures of its own"
        plan = service.call(_plan(service, *search))
        assert {step for step in plan if " sessions" in step} == {
            "SEARCH sessions USING INDEX sqlite_autoindex_sessions_1 (id=?)"
        }, (path, plan)


async def _plan(service: ServiceThread, statement: str, parameters: Any) -> list[str]:
    engine = service.parts.database.engine
    assert isinstance(engine, Engine)
    with engine.connect() as connection:
        return [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
