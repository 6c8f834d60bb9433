"""Agents and lists: versions, names, what a session keeps, and pages without gaps or repeats."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.service import Workspace


def test_an_update_writes_the_next_version_and_leaves_the_old_ones(workspace: Workspace) -> None:
    agent = workspace.agent(name="writer", system="one", metadata={"a": "1", "b": "2"}, limits={"max_steps": 3})
    path = f"/v1/agents/{agent['id']}"

    second = workspace.post(path, {"version": 1, "system": "two", "metadata": {"a": None, "c": "3"}})
    third = workspace.post(path, {"system": None})

    assert (second["version"], second["system"], second["metadata"]) == (2, "two", {"b": "2", "c": "3"})
    assert second["limits"]["max_steps"] == 3
    assert (third["version"], third["system"]) == (3, None)
    assert workspace.get(path)["version"] == 3
    assert workspace.get(f"{path}/versions/1")["system"] == "one"
    assert workspace.get(path, version=2)["system"] == "two"
    assert workspace.get(f"{path}/versions/4", expect=404)["code"] == "not_found"


def test_an_update_that_changes_nothing_writes_no_version(workspace: Workspace) -> None:
    agent = workspace.agent(system="one")

    again = workspace.post(f"/v1/agents/{agent['id']}", {"system": "one"})

    assert again["version"] == 1


def test_a_stale_version_is_a_conflict(workspace: Workspace) -> None:
    path = f"/v1/agents/{workspace.agent()['id']}"
    workspace.post(path, {"version": 1, "system": "mine"})

    refused = workspace.post(path, {"version": 1, "system": "theirs"}, expect=409)

    assert refused["code"] == "version_conflict"
    assert workspace.get(path)["system"] == "mine"


def test_of_updates_at_once_to_one_version_one_wins(workspace: Workspace) -> None:
    path = f"/v1/agents/{workspace.agent()['id']}"

    def update(number: int) -> int:
        return workspace.http.post(path, json={"version": 1, "system": str(number)}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(update, range(8)))

    assert statuses == [200] + [409] * 7
    assert [agent["version"] for agent in workspace.get(f"{path}/versions")["data"]] == [2, 1]


def test_updates_without_a_version_all_apply(workspace: Workspace) -> None:
    path = f"/v1/agents/{workspace.agent()['id']}"

    def update(number: int) -> int:
        return workspace.http.post(path, json={"metadata": {str(number): "x"}}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(update, range(8))) == {200}

    newest = workspace.get(path)
    assert newest["version"] == 9
    assert set(newest["metadata"]) == set("01234567")


def test_a_rollback_is_a_new_version(workspace: Workspace) -> None:
    path = f"/v1/agents/{workspace.agent(name='before', system='one')['id']}"
    workspace.post(path, {"system": "two", "name": "after"})

    back = workspace.post(f"{path}/rollback", {"version": 1})

    assert (back["version"], back["system"], back["name"]) == (3, "one", "before")
    assert workspace.get("/v1/agents", name="before")["data"][0]["id"] == back["id"]
    workspace.post(f"{path}/rollback", {"version": 9}, expect=404)


def test_an_archived_agent_starts_nothing_and_leaves_the_list(workspace: Workspace) -> None:
    agent = workspace.agent(name="old")
    session = workspace.post("/v1/sessions", {"agent": agent["id"]})

    archived = workspace.post(f"/v1/agents/{agent['id']}/archive")

    assert archived["archived_at"] is not None
    assert workspace.post(f"/v1/agents/{agent['id']}/archive")["archived_at"] == archived["archived_at"]
    assert workspace.post("/v1/runs", {"agent": agent["id"], "input": "x"}, expect=409)["code"] == "archived"
    assert workspace.post("/v1/runs", {"agent": "old", "input": "x"}, expect=404)["code"] == "not_found"
    assert workspace.post(f"/v1/agents/{agent['id']}", {"system": "x"}, expect=409)["code"] == "archived"
    assert workspace.get("/v1/agents")["data"] == []
    assert len(workspace.get("/v1/agents", include_archived=True)["data"]) == 1
    accepted = workspace.post(f"/v1/sessions/{session['id']}/messages", {"content": "goes on"}, expect=201)
    assert accepted["run"]["agent"]["id"] == agent["id"]


def test_a_name_finds_its_agent_unless_two_have_it(workspace: Workspace) -> None:
    agent = workspace.agent(name="agent_smith", model="demo:echo")
    run = workspace.start(text="hello", agent="agent_smith")
    assert run.row["agent"]["id"] == agent["id"]

    workspace.agent(name="agent_smith")

    refused = workspace.post("/v1/runs", {"agent": "agent_smith", "input": "x"}, expect=409)
    assert refused["code"] == "conflict"
    assert "agent_smith" in refused["detail"]


def test_a_session_keeps_the_version_it_began_with(workspace: Workspace) -> None:
    agent = workspace.agent(model="demo:echo", system="one")
    session = workspace.post("/v1/sessions", {"agent": agent["id"]})
    workspace.post(f"/v1/agents/{agent['id']}", {"model": "demo:demo", "system": "two"})

    sent = workspace.post(f"/v1/sessions/{session['id']}/messages", {"content": "say this"}, expect=201)
    run = workspace.get(f"/v1/runs/{sent['run']['id']}/wait", timeout_seconds=30)

    assert run["agent"]["version"] == 1
    assert run["output"] == "say this"
    assert workspace.get(f"/v1/sessions/{session['id']}")["agent"]["system"] == "one"
    assert workspace.post("/v1/sessions", {"agent": agent["id"]})["agent"]["version"] == 2
    pinned = workspace.post("/v1/sessions", {"agent": {"id": agent["id"], "version": 1}})
    assert pinned["agent"]["version"] == 1


def test_an_inline_agent_is_used_and_not_listed(workspace: Workspace) -> None:
    run = workspace.start(text="hi", agent={"name": "inline", "model": "demo:echo"})

    assert run.wait()["output"] == "hi"
    assert workspace.get("/v1/agents")["data"] == []


def test_what_an_agent_says_can_be_sent_back(workspace: Workspace) -> None:
    toolset = {"type": "agent_toolset_20260401", "configs": [{"name": "write", "enabled": False}]}
    agent = workspace.agent(tools=[toolset], metadata={"k": "v"})
    body = {name: agent[name] for name in ("name", "model", "system", "tools", "limits", "metadata", "mcp_servers", "skills")}

    again = workspace.post(f"/v1/agents/{agent['id']}", body)

    assert again == {**agent, "version": again["version"], "updated_at": again["updated_at"]}


def walk(workspace: Workspace, path: str, **params: Any) -> list[dict[str, Any]]:
    """Every item of a list, page by page."""
    items: list[dict[str, Any]] = []
    page: dict[str, Any] = {}
    for _ in range(50):
        answer = workspace.get(path, **params, **page)
        assert len(answer["data"]) <= params.get("limit", 20)
        items += answer["data"]
        assert answer["has_more"] == (answer["next_page"] is not None)
        if answer["next_page"] is None:
            return items
        page = {"page": answer["next_page"]}
    raise AssertionError("the list does not end")


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_are_complete_and_without_repeats_in_both_orders(workspace: Workspace, limit: int) -> None:
    agents = [workspace.agent()["id"] for _ in range(7)]
    sessions = [workspace.post("/v1/sessions", {"agent": agent})["id"] for agent in agents]
    runs = [workspace.start(text="x", agent=agents[0]).id for _ in range(7)]
    keys = len(workspace.get("/v1/api_keys")["data"])
    for path, made in (("/v1/agents", agents), ("/v1/runs", runs)):
        assert [item["id"] for item in walk(workspace, path, limit=limit, order="asc")] == made
        assert [item["id"] for item in walk(workspace, path, limit=limit)] == made[::-1]
    found = [item["id"] for item in walk(workspace, "/v1/sessions", limit=limit, order="asc")]
    assert found[:7] == sessions
    assert len(set(found)) == 14  # each run made one of its own
    assert found[::-1] == [item["id"] for item in walk(workspace, "/v1/sessions", limit=limit)]
    assert len(walk(workspace, "/v1/api_keys", limit=limit)) == keys


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_versions_and_events_come_in_pages_too(workspace: Workspace, limit: int) -> None:
    path = f"/v1/agents/{workspace.agent()['id']}"
    for number in range(4):
        workspace.post(path, {"system": str(number)})
    run = workspace.start({"text": "a", "tools": [{"name": "none", "input": {}}]}, {"text": "b"})
    session = run.wait()["session_id"]

    assert [item["version"] for item in walk(workspace, f"{path}/versions", limit=limit)] == [5, 4, 3, 2, 1]
    up = [event["seq"] for event in walk(workspace, f"/v1/sessions/{session}/events", limit=limit)]
    down = [event["seq"] for event in walk(workspace, f"/v1/sessions/{session}/events", limit=limit, order="desc")]
    of_run = [event["seq"] for event in walk(workspace, f"/v1/runs/{run.id}/events", limit=limit)]
    assert up == list(range(1, len(up) + 1))
    assert down == up[::-1]
    assert of_run == [event["seq"] for event in run.events()]
    items = walk(workspace, f"/v1/sessions/{session}/items", limit=limit)
    assert [item["type"] for item in items] == ["message", "message", "tool_use", "message"]
    assert items[2]["result"]["is_error"] is True


def test_filters_leave_out_the_rest(workspace: Workspace) -> None:
    first, second = workspace.agent(model="demo:echo"), workspace.agent(model="demo:echo")
    done = workspace.start(text="x", agent=first["id"])
    done.wait()
    bad = workspace.start({"fail": {"code": "rejected"}}, agent=second["id"])
    failed = bad.wait()

    def runs(**params: Any) -> list[str]:
        return [run["id"] for run in workspace.get("/v1/runs", order="asc", **params)["data"]]

    def sessions(**params: Any) -> list[str]:
        return [session["id"] for session in workspace.get("/v1/sessions", order="asc", **params)["data"]]

    assert runs() == [done.id, bad.id]
    assert runs(status="failed") == [bad.id]
    assert runs(status=["failed", "completed"]) == [done.id, bad.id]
    assert runs(agent_id=first["id"]) == [done.id]
    assert runs(session_id=failed["session_id"]) == [bad.id]
    moment = failed["created_at"]
    for list_of, mine in ((runs, bad.id), (sessions, failed["session_id"])):
        created = moment if list_of is runs else workspace.get(f"/v1/sessions/{mine}")["created_at"]
        assert list_of(**{"created_at[gte]": created}) == [mine]
        assert list_of(**{"created_at[gt]": created}) == []
        assert mine not in list_of(**{"created_at[lt]": created})
        assert mine in list_of(**{"created_at[lte]": created})
        assert list_of(**{"created_at[gt]": "9999-12-31T23:59:59-14:00"}) == []
        assert len(list_of(**{"created_at[gt]": "0001-01-01T00:00:00+14:00"})) == 2
        naive = created.removesuffix("Z")
        assert list_of(**{"created_at[gte]": naive}) == [mine]
    assert sessions(agent_id=second["id"]) == [failed["session_id"]]
    assert sessions(**{"statuses[]": "running"}) == []
    assert len(sessions(statuses="idle")) == 2
    types = workspace.get(f"/v1/sessions/{failed['session_id']}/events", types=["run.failed", "run.queued"])["data"]
    assert [event["type"] for event in types] == ["run.queued", "run.failed"]
