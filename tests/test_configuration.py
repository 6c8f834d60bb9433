"""What an operator sets in perdure.toml: providers, prices, queues, tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.errors import Invalid
from settings import Settings
from tests.service import ServiceThread, Workspace
from worker import parts

CONFIG = """
[providers.priced]
kind = "scripted"
queue = "model.priced"
prices = { input = 1.0, output = 1000.0 }

[providers.shout]
kind = "command"
argv = ["sh", "-c", "printf 'you said: '; cat"]
stdin = true

[providers.elsewhere]
kind = "openai_compatible"
base_url = "http://127.0.0.1:9/v1"
api_key_env = "PERDURE_TEST_MISSING_KEY"

[tools]
modules = ["tests.own_tools"]
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, database_url: str | None) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("configured")
    (data / "perdure.toml").write_text(CONFIG)
    with ServiceThread(data, database_url) as running:
        yield running


@pytest.fixture
def workspace(configured: ServiceThread) -> Iterator[Workspace]:
    with configured.workspace() as fresh:
        yield fresh


def test_own_tools_run_and_their_failures_stay_with_the_model(workspace: Workspace) -> None:
    calls: dict[str, Any] = {
        "tools": [
            {"name": "ring", "input": {"times": 2}},
            {"name": "dawdle", "input": {}},
            {"name": "explode", "input": {}},
            {"name": "ring", "input": {"times": "many"}},
        ]
    }
    run = workspace.start(calls, {"text": "Done."}, tools=["ring", "dawdle", "explode"])
    assert run.wait()["status"] == "completed"

    uses = {event["id"]: event for event in run.events() if event["type"] == "agent.tool_use"}
    results = {event["tool_use_id"]: event for event in run.events() if event["type"] == "agent.tool_result"}
    rung, slow, broken, invalid = (results[use] for use in uses)
    assert rung["content"][0]["text"] == f"rung 2 times under {run.id}/{next(iter(uses))}"
    assert slow["is_error"]
    assert "longer than" in slow["content"][0]["text"]
    assert broken["is_error"]
    assert "secret" not in broken["content"][0]["text"]
    assert invalid["is_error"]
    assert "times" in invalid["content"][0]["text"]
    started = [event["tool_use_id"] for event in run.events() if event["type"] == "agent.tool_started"]
    first, _, _, last = uses
    assert set(started) == {first, last}  # those that must never start twice


def test_a_provider_has_its_queue_and_its_prices(workspace: Workspace) -> None:
    usage = {"input_tokens": 500, "output_tokens": 20}
    run = workspace.start({"text": "hi", "usage": usage}, agent=workspace.agent(model="priced:script")["id"])
    row = run.wait()
    assert row["cost"] == {"amount": "0.0205", "currency": "USD"}
    session = workspace.get(f"/v1/sessions/{row['session_id']}")
    assert session["cost"] == row["cost"]


def test_a_limit_on_cost(workspace: Workspace) -> None:
    step: dict[str, Any] = {"tools": [{"name": "explode", "input": {}}], "usage": {"input_tokens": 0, "output_tokens": 100}}
    agent = workspace.agent(model="priced:script", tools=["explode"])["id"]
    row = workspace.start(*[step] * 5, agent=agent, limits={"max_cost_usd": 0.15}).wait()
    assert (row["stop_reason"]["type"], row["step_count"], row["cost"]["amount"]) == ("budget_reached", 2, "0.2")


def test_a_limit_on_cost_is_that_of_the_tree(workspace: Workspace) -> None:
    """Each call costs 0.1; the first leaves 0.25 of 0.35 to its sub-agent, which ends when it has used that up."""
    paid = {"usage": {"input_tokens": 0, "output_tokens": 100}}
    lead = workspace.agent(name="lead", model="priced:script", multiagent={"agents": [{"type": "self"}]})["id"]
    task = json.dumps({"script": [{"text": "more", "stop_reason": "continue", **paid}] * 9})
    asked = {"name": "delegate", "input": {"agent": "lead", "task": task}}
    run = workspace.start({"tools": [asked], **paid}, {"text": "never"}, agent=lead, limits={"max_cost_usd": 0.35})

    row = run.wait()

    assert (row["status"], row["stop_reason"]["type"], row["step_count"]) == ("completed", "budget_reached", 1)
    (child,) = workspace.get("/v1/runs", parent_run_id=run.id)["data"]
    assert (child["stop_reason"]["type"], child["step_count"], child["cost"]["amount"]) == ("budget_reached", 3, "0.3")
    assert child["limits"]["max_cost_usd"] == 0.25
    assert workspace.get(f"/v1/sessions/{row['session_id']}")["cost"]["amount"] == "0.4"


def test_a_command_is_a_model(workspace: Workspace) -> None:
    run = workspace.start(text="hello", agent=workspace.agent(model="shout:default")["id"])
    row = run.wait()
    assert (row["status"], row["output"], row["usage"]["estimated"], row["cost"]) == (
        "completed",
        "you said: hello",
        True,
        None,
    )


def test_a_missing_key_fails_the_run_and_names_the_setting(workspace: Workspace) -> None:
    row = workspace.start(text="hello", agent=workspace.agent(model="elsewhere:m")["id"]).wait()
    assert (row["status"], row["error"]["code"]) == ("failed", "provider_auth")
    assert "PERDURE_TEST_MISSING_KEY" in row["error"]["message"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[providers.x]\nkind = 'openai_compatible'\nbase_uri = 'http://h'", "base_uri"),
        ("[provider.x]\nkind = 'scripted'", "provider"),
        ("[providers.x\n", "TOML"),
        ("[tools.web_search]\nbackend = 'bing'", "tools.web_search"),
        ("[tools.web_search]\nbackend = 'searxng'", "tools.web_search.searxng.base_url"),
        ("[tools.web_search]\nbackend = 'brave'\napi_key = 'k'", "tools.web_search.brave.api_key"),
    ],
)
def test_a_faulty_file_is_refused_with_the_place(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text(text)
    with pytest.raises(Invalid, match=fault):
        Settings(config=path).file()


async def test_a_search_whose_key_is_not_set_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text("[tools.web_search]\nbackend = 'tavily'\napi_key_env = 'PERDURE_TEST_MISSING_KEY'\n")
    with pytest.raises(Invalid, match=r"tools\.web_search: the variable PERDURE_TEST_MISSING_KEY is not set"):
        async with parts(Settings(config=path, data_dir=tmp_path)):
            pass
