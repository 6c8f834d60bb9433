"""What a run waits for without a worker: answers, results of the caller's own tools, a time, an event outside."""

import json
import time
from typing import Any

import pytest

from tests.service import RunView, ServiceThread, Workspace


def result(run: RunView) -> tuple[str, bool]:
    (found,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
    return found["content"][0]["text"], found["is_error"]


def waiting(run: RunView, kind: str) -> dict[str, Any]:
    run.until(lambda row: row["waiting_for"] == kind)
    return next(event for event in run.events() if event["type"] in ("agent.tool_use", "agent.custom_tool_use"))


def test_a_plan_is_seen_in_the_run_and_in_the_log(workspace: Workspace) -> None:
    items = [{"content": "look", "status": "completed"}, {"content": "leap", "status": "in_progress"}]
    run = workspace.start({"tools": [{"name": "plan", "input": {"items": items}}]}, {"text": "So far."}, tools=["plan"])

    assert run.wait()["plan"] == items
    assert [event["items"] for event in run.events() if event["type"] == "agent.plan"] == [items]
    assert result(run)[0] == "1 of 2 steps are completed."


def test_a_choice_is_one_of_the_choices(workspace: Workspace) -> None:
    asks = {"name": "ask_user", "input": {"question": "Which?", "choices": ["red", "blue"]}}
    run = workspace.start({"tools": [asks]}, {"text": "Thanks."}, tools=["ask_user"])
    use = waiting(run, "input")
    (question,) = [event for event in run.events() if event["type"] == "agent.question"]
    assert (question["choices"], question["tool_use_id"]) == (["red", "blue"], use["id"])

    run.command("input", {"content": "green"}, expect=422)
    run.command("input", {"content": "blue"})

    assert run.wait()["status"] == "completed"
    assert result(run) == ("blue", False)


def test_an_answer_fits_its_schema(workspace: Workspace) -> None:
    schema = {"type": "object", "properties": {"nights": {"type": "integer"}}, "required": ["nights"]}
    asks = {"name": "ask_user", "input": {"question": "How long?", "answer_schema": schema}}
    run = workspace.start({"tools": [asks]}, {"text": "Thanks."}, tools=["ask_user"])
    use, path = waiting(run, "input"), f"/v1/sessions/{run.row['session_id']}/events"

    def send(text: str, expect: int) -> dict[str, Any]:
        event = {"type": "user.answer", "tool_use_id": use["id"], "content": text}
        return workspace.post(path, {"events": [event]}, expect=expect)

    assert "nights: " in send('{"nights": "two"}', 422)["errors"][0]["detail"]
    send("two", 422)
    (sent,) = send('{"nights": 2}', 200)["data"]
    assert sent["type"] == "user.answer"

    assert run.wait()["status"] == "completed"
    assert result(run) == ('{"nights": 2}', False)
    assert send('{"nights": 3}', 409)["code"] == "already_answered"


def test_a_bad_question_is_the_models_to_mend(workspace: Workspace) -> None:
    bad = {"name": "ask_user", "input": {"question": "?", "answer_schema": {"type": "nonsense"}}}
    run = workspace.start({"tools": [bad]}, {"text": "I see."}, tools=["ask_user"])

    assert run.wait()["status"] == "completed"
    assert result(run)[0].startswith("invalid arguments\nanswer_schema is no JSON Schema")
    assert "agent.question" not in run.types()


def test_sleeping_is_a_timer(workspace: Workspace) -> None:
    run = workspace.start(
        {"tools": [{"name": "sleep_until", "input": {"seconds": 1.5}}]}, {"text": "Hm?"}, tools=["sleep_until"]
    )
    waiting(run, "time")
    (told,) = [event for event in run.events() if event["type"] == "run.waiting"]

    assert run.wait()["status"] == "completed"
    (woken,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
    assert told["until"] <= woken["created_at"]
    assert woken["content"][0]["text"].startswith("It is 20")


def test_an_event_outside_wakes_those_that_it_fits(service: ServiceThread, workspace: Workspace) -> None:
    def paid(number: int) -> dict[str, Any]:
        return {"name": "wait_for_event", "input": {"event_type": "invoice.paid", "match": {"number": number}}}

    agent = workspace.agent(tools=["wait_for_event"])["id"]
    runs = [workspace.start({"tools": [paid(number)]}, {"text": "Thanks."}, agent=agent) for number in (1, 2, 1)]
    for run in runs:
        waiting(run, "event")
    with service.workspace() as other:
        assert other.post("/v1/external_events", {"type": "invoice.paid", "data": {"number": 1}})["woken"] == 0

    assert workspace.post("/v1/external_events", {"type": "invoice.sent", "data": {"number": 1}}, expect=202)["woken"] == 0
    accepted = workspace.post("/v1/external_events", {"type": "invoice.paid", "data": {"number": 1, "sum": 5}}, expect=202)

    assert (accepted["woken"], accepted["has_more"]) == (2, False)
    assert {runs[0].wait()["status"], runs[2].wait()["status"]} == {"completed"}
    assert json.loads(result(runs[0])[0]) == {"type": "invoice.paid", "data": {"number": 1, "sum": 5}}
    assert runs[1].row["waiting_for"] == "event"


def test_no_event_comes_in_time(workspace: Workspace) -> None:
    tool = {"name": "wait_for_event", "input": {"event_type": "never", "timeout_seconds": 1}}
    run = workspace.start({"tools": [tool]}, {"text": "Pity."}, tools=["wait_for_event"])

    assert run.wait()["status"] == "completed"
    assert result(run) == ("Nothing came in time.", True)
    assert workspace.post("/v1/external_events", {"type": "never"})["woken"] == 0


CUSTOM = {
    "type": "custom",
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def test_the_caller_runs_a_tool(workspace: Workspace) -> None:
    run = workspace.start({"tools": [{"name": "weather", "input": {"city": "Rome"}}]}, {"text": "Sunny."}, tools=[CUSTOM])
    use, path = waiting(run, "tool_result"), f"/v1/sessions/{run.row['session_id']}/events"
    assert (use["type"], use["name"], use["input"]) == ("agent.custom_tool_use", "weather", {"city": "Rome"})
    answer = {
        "type": "user.custom_tool_result",
        "custom_tool_use_id": use["id"],
        "content": [{"type": "text", "text": "30 degrees"}],
    }

    workspace.post(path, {"events": [{**answer, "custom_tool_use_id": "sevt_none"}]}, expect=404)
    workspace.post(path, {"events": [answer]})

    assert run.wait()["status"] == "completed"
    assert workspace.post(path, {"events": [answer]}, expect=409)["code"] in ("already_answered", "run_finished")
    items = workspace.get(f"/v1/sessions/{run.row['session_id']}/items")["data"]
    (item,) = [item for item in items if item["type"] == "tool_use"]
    assert item["result"]["content"] == [{"type": "text", "text": "30 degrees"}]


def test_waits_of_one_step_are_answered_in_any_order(workspace: Workspace) -> None:
    step: list[dict[str, Any]] = [
        {"name": "ask_user", "input": {"question": "A?"}},
        {"name": "weather", "input": {}},
        {"name": "ask_user", "input": {"question": "B?"}},
    ]
    run = workspace.start({"tools": step}, {"text": "Done."}, tools=["ask_user", CUSTOM])
    run.until(lambda row: row["waiting_for"] == "input")
    a, weather, b = (e["id"] for e in run.events() if e["type"] in ("agent.tool_use", "agent.custom_tool_use"))
    path = f"/v1/sessions/{run.row['session_id']}/events"

    def send(**event: Any) -> None:
        workspace.post(path, {"events": [event]})

    send(type="user.answer", tool_use_id=b, content="for b")
    send(type="user.custom_tool_result", custom_tool_use_id=weather, content=[])
    run.until(lambda row: row["waiting_for"] == "input")
    time.sleep(0.2)
    assert run.row["status"] == "waiting"
    send(type="user.answer", tool_use_id=a, content="for a")

    assert run.wait()["status"] == "completed"
    texts = {e["tool_use_id"]: e["content"][0]["text"] for e in run.events() if e["type"] == "agent.tool_result"}
    assert texts == {a: "for a", b: "for b"}


@pytest.mark.parametrize(
    "tool",
    [
        {**CUSTOM, "name": "read"},
        {**CUSTOM, "name": "no spaces please"},
        {**CUSTOM, "input_schema": {"type": "object", "properties": {"a": {"type": "nonsense"}}}},
        {**CUSTOM, "input_schema": {"type": "string"}},
    ],
    ids=["name of a built-in", "no name", "no schema", "no object"],
)
def test_custom_tools_that_cannot_be(workspace: Workspace, tool: dict[str, Any]) -> None:
    problem = workspace.post("/v1/agents", {"name": "a", "model": "demo:script", "tools": [tool]}, expect=422)
    assert problem["errors"][0]["pointer"].startswith("/tools/0")


def test_a_tool_that_the_agent_does_not_have_is_not_run(workspace: Workspace) -> None:
    run = workspace.start({"tools": [{"name": "glob", "input": {"pattern": "*"}}]}, {"text": "Oh."}, tools=["read"])

    assert run.wait()["status"] == "completed"
    assert result(run) == ("there is no tool 'glob'; there are: read", True)


def test_no_wait_holds_a_worker(service: ServiceThread, workspace: Workspace) -> None:
    """Whatever a run waits for: Temporal has no activity of it, and the history does not grow."""
    step: list[dict[str, Any]] = [
        {"name": "ask_user", "input": {"question": "?"}},
        {"name": "wait_for_event", "input": {"event_type": "never"}},
        {"name": "sleep_until", "input": {"until": "2027-11-01T00:00:00Z"}},
        {"name": "weather", "input": {}},
        {"name": "write", "input": {"file_path": "a", "content": "x"}},
    ]
    asks = {"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}
    run = workspace.start({"tools": step}, tools=["ask_user", "wait_for_event", "sleep_until", CUSTOM, asks])
    waiting(run, "approval")  # the most urgent of them
    time.sleep(0.5)
    handle = service.temporal.get_workflow_handle(run.id)

    before = service.call(handle.describe())
    time.sleep(1)
    after = service.call(handle.describe())

    assert list(after.raw_description.pending_activities) == []
    assert after.history_length == before.history_length
    run.command("cancel")
    assert run.wait()["status"] == "cancelled"
