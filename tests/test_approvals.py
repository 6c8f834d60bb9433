"""A person is asked before a tool runs, through the front door."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import JsonValue

from activities.tool_uses import ToolUses
from api.services.answers import AnswerService
from domain.agents import AgentConfig, ModelConfig
from domain.approvals import Decision
from domain.completions import ToolUse
from storage.runs import Place
from tests.service import RunView, ServiceThread, Workspace
from tests.sweeping import crashed, sweep
from tools.registry import Tools, builtin_tools
from workflows.client import RunClient


def asking(*names: str, policy: str = "always_ask") -> list[dict[str, Any]]:
    return [{"type": "function", "name": name, "permission_policy": {"type": policy}} for name in names]


def write(name: str, content: str = "x") -> dict[str, Any]:
    return {"name": "write", "input": {"file_path": name, "content": content}}


def pending(workspace: Workspace, run: RunView, count: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 15
    while True:
        found = workspace.get("/v1/approvals", status="pending", run_id=run.id, order="asc")["data"]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, (found, run.row)
        time.sleep(0.02)


def decide(workspace: Workspace, approval: dict[str, Any], expect: int = 200, **decision: Any) -> dict[str, Any]:
    return workspace.post(f"/v1/approvals/{approval['id']}/decision", decision, expect=expect)


def results(run: RunView) -> list[tuple[str, bool]]:
    return [(e["content"][0]["text"], e["is_error"]) for e in run.events() if e["type"] == "agent.tool_result"]


def files(service: ServiceThread, run: RunView) -> list[str]:
    folder = next(service.settings.files.glob(f"*/{run.row['session_id']}"), Path("/nowhere"))
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_nothing_happens_before_it_is_approved(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))

    (approval,) = pending(workspace, run)
    assert (run.row["status"], run.row["waiting_for"]) == ("waiting", "approval")
    assert (approval["tool_name"], approval["input"]) == ("write", {"file_path": "a.txt", "content": "x"})
    session = workspace.get(f"/v1/sessions/{approval['session_id']}")
    assert session["status"] == "idle"
    idle = [event for event in run.events() if event["type"] == "session.status_idle"]
    assert idle[-1]["stop_reason"] == {"type": "requires_action", "event_ids": [approval["tool_use_id"]]}
    assert files(service, run) == []
    assert decide(workspace, approval, decision="approve")["status"] == "approved"

    assert run.wait()["status"] == "completed"
    assert files(service, run) == ["a.txt"]
    types = run.types()
    wanted = ["agent.tool_use", "approval.requested", "user.tool_confirmation", "approval.resolved", "agent.tool_result"]
    assert [type for type in types if type in wanted] == wanted


def test_a_denial_is_for_the_model_to_read(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "All right."}, tools=asking("write"))

    decide(workspace, pending(workspace, run)[0], decision="deny", reason="Not on a Friday.")

    assert run.wait()["status"] == "completed"
    assert results(run) == [("A person denied this call: Not on a Friday.", True)]
    assert files(service, run) == []


def test_edited_arguments_are_run_and_told(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))
    (approval,) = pending(workspace, run)

    wrong = decide(workspace, approval, 422, decision="approve", input={"file_path": 3})
    assert wrong["errors"][0]["pointer"] == "/input"
    decide(workspace, approval, 422, decision="deny", input={"file_path": "b.txt", "content": "y"})
    edited = decide(workspace, approval, decision="approve", input={"file_path": "b.txt", "content": "y"})

    assert run.wait()["status"] == "completed"
    assert files(service, run) == ["b.txt"]
    assert results(run)[0][0].startswith("A person changed the arguments of this call to {")
    assert (edited["input"], edited["edited_input"]["file_path"]) == (approval["input"], "b.txt")


def test_the_first_of_many_decisions_wins(workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))
    (approval,) = pending(workspace, run)
    path = f"/v1/approvals/{approval['id']}/decision"

    def post(number: int) -> httpx2.Response:
        return workspace.http.post(path, json={"decision": "approve" if number % 2 else "deny"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))

    (won,) = [answer.json() for answer in answers if answer.status_code == 200]
    lost = [answer.json() for answer in answers if answer.status_code == 409]
    assert len(lost) == 7
    assert {problem["code"] for problem in lost} == {"approval_decided"}
    assert {problem["approval"]["status"] for problem in lost} == {won["status"]}
    assert run.wait()["status"] == "completed"
    assert len(results(run)) == 1
    assert run.types().count("approval.resolved") == 1


def test_several_are_decided_one_by_one_while_others_run(service: ServiceThread, workspace: Workspace) -> None:
    tools = [*asking("write"), *asking("glob", policy="always_allow"), *asking("edit", policy="always_deny")]
    edit = {"name": "edit", "input": {"file_path": "a.txt", "old_string": "x", "new_string": "y"}}
    step = {"tools": [write("a.txt"), {"name": "glob", "input": {"pattern": "*"}}, edit, write("b.txt"), write("c.txt")]}
    run = workspace.start(step, {"text": "Done."}, tools=tools)
    first, second, third = pending(workspace, run, 3)

    run.until(lambda _: len(results(run)) == 2)  # what is allowed ran, what is never allowed was refused
    run.until(lambda _: "session.status_idle" in run.types())
    decide(workspace, second, decision="approve")
    run.until(lambda _: files(service, run) == ["b.txt"])
    assert (run.row["status"], run.row["waiting_for"]) == ("waiting", "approval")
    decide(workspace, third, decision="deny")
    decide(workspace, first, decision="approve")

    assert run.wait()["status"] == "completed"
    assert files(service, run) == ["a.txt", "b.txt"]
    assert len(results(run)) == 5
    idle = [e["stop_reason"] for e in run.events() if e["type"] == "session.status_idle"]
    assert [len(reason.get("event_ids", ())) for reason in idle] == [3, 2, 1, 0]


def test_a_decision_is_remembered_for_the_session(workspace: Workspace) -> None:
    steps = {"tools": [write("a.txt")]}, {"tools": [write("b.txt")]}, {"text": "Done."}
    run = workspace.start(*steps, tools=asking("write"))

    decide(workspace, pending(workspace, run)[0], decision="approve", remember=True)

    assert run.wait()["status"] == "completed"
    assert run.types().count("approval.requested") == 1
    path = f"/v1/sessions/{run.row['session_id']}"
    assert workspace.get(path)["permissions"] == {"write": "always_allow"}
    assert workspace.post(path, {"permissions": {"write": None}})["permissions"] == {}


def test_a_confirmation_is_a_decision(service: ServiceThread, workspace: Workspace) -> None:
    """With the official SDK's event, all that the approval's own route can."""
    steps = {"tools": [write("a.txt")]}, {"tools": [write("c.txt")]}, {"text": "Done."}
    run = workspace.start(*steps, tools=asking("write"))
    (approval,) = pending(workspace, run)
    path = f"/v1/sessions/{run.row['session_id']}/events"
    confirms = {"type": "user.tool_confirmation", "tool_use_id": approval["tool_use_id"]}

    def confirm(expect: int = 200, **said: Any) -> dict[str, Any]:
        return workspace.post(path, {"events": [{**confirms, **said}]}, expect=expect)

    confirm(404, tool_use_id="sevt_none", result="allow")
    confirm(422, result="deny", input={"file_path": "b.txt", "content": "y"})
    assert confirm(422, result="allow", input={"file_path": 3})["errors"][0]["pointer"] == "/input"
    assert files(service, run) == []
    confirm(result="allow", input={"file_path": "b.txt", "content": "y"}, remember=True)
    late = confirm(409, result="deny")

    assert (late["code"], late["approval"]["id"]) == ("approval_decided", approval["id"])
    assert (late["approval"]["status"], late["approval"]["edited_input"]["file_path"]) == ("approved", "b.txt")
    assert late["approval"]["decided_by"] in late["detail"]
    assert run.wait()["status"] == "completed"
    assert files(service, run) == ["b.txt", "c.txt"]
    assert run.types().count("approval.requested") == 1


def test_a_denial_is_remembered_too(workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"tools": [write("b.txt")]}, {"text": "Done."}, tools=asking("write"))

    decide(workspace, pending(workspace, run)[0], decision="deny", remember=True)

    assert run.wait()["status"] == "completed"
    assert [text for text, _ in results(run)] == ["A person denied this call.", "This agent may not use that tool here."]


def test_the_shell_and_http_tools_ask_where_nobody_said_anything(workspace: Workspace) -> None:
    schema = {"type": "object"}
    http = {"type": "http", "name": "tell", "description": "Tell.", "input_schema": schema, "url": "https://a.example/"}
    asked: list[dict[str, Any]] = [
        {"name": "tell", "input": {}},
        {"name": "bash", "input": {"command": "touch a"}},
        write("a.txt"),
    ]
    for tools in (["bash", "write", http], [{"type": "agent_toolset_20260401"}, http]):
        run = workspace.start({"tools": asked}, {"text": "Done."}, tools=tools)

        waiting = pending(workspace, run, 2)

        assert {approval["tool_name"] for approval in waiting} == {"bash", "tell"}
        for approval in waiting:
            decide(workspace, approval, decision="deny")
        assert run.wait()["status"] == "completed"


def test_nobody_is_asked_about_arguments_that_are_none() -> None:
    """What the model wrote is no JSON object: nothing could be shown that would then be run."""
    place = Place("wrkspc_1", "sesn_1", "run_1", None, "task", {})
    offered = Tools(builtin_tools()).offer("bash")
    uses = ToolUses(place, AgentConfig(name="a", model=ModelConfig(id="demo:script")), {"bash": offered})

    uses.take(ToolUse(id="toolu_1", name="bash", input={}, malformed='{"command": "ls'))

    assert (uses.decided.rows, uses.decided.waiting, uses.decided.called) == ([], [], 1)


def test_a_session_has_policies_of_its_own(workspace: Workspace) -> None:
    agent = workspace.agent(tools=["write", "glob"])["id"]
    session = workspace.post("/v1/sessions", {"agent": agent, "permissions": {"write": "always_ask", "glob": "always_deny"}})
    step = {"tools": [write("a.txt"), {"name": "glob", "input": {"pattern": "*"}}]}

    run = workspace.start(step, {"text": "Done."}, agent=None or agent, session_id=session["id"])

    decide(workspace, pending(workspace, run)[0], decision="approve")
    assert run.wait()["status"] == "completed"
    assert results(run)[0] == ("This agent may not use that tool here.", True)


@pytest.mark.parametrize(("on_timeout", "status"), [("deny", "completed"), ("cancel_run", "cancelled")])
def test_nobody_decides_in_time(workspace: Workspace, on_timeout: str, status: str) -> None:
    agent = workspace.agent(tools=asking("write"), approvals={"timeout_seconds": 1, "on_timeout": on_timeout})["id"]
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "So be it."}, agent=agent)

    assert run.wait()["status"] == status
    (approval,) = workspace.get("/v1/approvals", run_id=run.id)["data"]
    assert approval["status"] == "expired"
    assert results(run) == [("Nobody approved this call in time. It was not made.", True)]
    assert decide(workspace, approval, 409, decision="approve")["approval"]["status"] == "expired"


def test_runs_that_nobody_watches_are_denied_after_a_day(workspace: Workspace) -> None:
    agent = workspace.agent(tools=asking("write"))["id"]
    session = workspace.post("/v1/sessions", {"agent": agent})["id"]
    alone = workspace.start({"tools": [write("a.txt")]}, agent=agent)
    turn = workspace.start({"tools": [write("a.txt")]}, agent=agent, session_id=session)

    (of_alone,), (of_turn,) = pending(workspace, alone), pending(workspace, turn)

    assert (of_alone["on_timeout"], of_turn["on_timeout"], of_turn["expires_at"]) == ("deny", "wait", None)
    created, expires = (datetime.fromisoformat(of_alone[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(days=1)


def test_who_is_to_be_waited_for_is_waited_for(workspace: Workspace) -> None:
    agent = workspace.agent(tools=asking("write"), approvals={"timeout_seconds": 1, "on_timeout": "wait"})["id"]
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, agent=agent)
    (approval,) = pending(workspace, run)
    assert approval["expires_at"] is None

    time.sleep(1.5)
    decide(workspace, approval, decision="approve")

    assert run.wait()["status"] == "completed"


@pytest.mark.parametrize("stop", ["cancel", "terminate", "archive"])
def test_the_end_of_a_run_closes_its_approvals(workspace: Workspace, stop: str) -> None:
    agent = workspace.agent(tools=asking("write"))["id"]
    session = workspace.post("/v1/sessions", {"agent": agent})["id"]
    run = workspace.start({"tools": [write("a.txt"), write("b.txt")]}, agent=agent, session_id=session)
    approvals = pending(workspace, run, 2)

    if stop == "archive":
        workspace.post(f"/v1/sessions/{session}/archive")
    else:
        run.command(stop)

    # At once, not when the run has ended.
    assert workspace.get("/v1/approvals", status="pending", run_id=run.id)["data"] == []
    decide(workspace, approvals[0], 409, decision="approve")
    assert run.wait()["status"] == ("terminated" if stop == "terminate" else "cancelled")
    assert run.types().count("approval.cancelled") == 2


def test_input_behind_an_approval_waits_its_turn(service: ServiceThread, workspace: Workspace) -> None:
    agent = workspace.agent(tools=asking("write"))["id"]
    session = workspace.post("/v1/sessions", {"agent": agent})["id"]
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, agent=agent, session_id=session)
    (approval,) = pending(workspace, run)

    sent = workspace.post(f"/v1/sessions/{session}/messages", {"content": "And then?"})
    assert sent["run"]["status"] == "queued"
    busy = {"content": "And then?", "on_busy": "reject"}
    assert workspace.post(f"/v1/sessions/{session}/messages", busy, expect=409)["code"] == "session_busy"
    run.command("input", {"content": json.dumps({"script": [{"text": "So be it."}]})})
    assert (run.row["status"], run.row["waiting_for"]) == ("waiting", "approval")
    assert files(service, run) == []
    decide(workspace, approval, decision="approve")

    # What was said to the run itself is read by its next model call, behind the result.
    assert (run.wait()["status"], run.row["output"]) == ("completed", "So be it.")
    assert files(service, run) == ["a.txt"]
    following = RunView(workspace, sent["run"]["id"]).wait()
    assert (following["status"], following["output"]) == ("completed", "(end of script)")


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_decision_after_a_pause_was_asked_for(workspace: Workspace, paused: bool) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))
    (approval,) = pending(workspace, run)
    run.command("pause", {"mode": "now"})
    if not paused:
        run.command("resume")

    decide(workspace, approval, decision="approve")

    if paused:
        run.until(lambda row: row["status"] == "paused")
        assert len(results(run)) == 1
        run.command("resume")
    assert run.wait()["status"] == "completed"


def test_the_temporal_cli_decides_too(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt"), write("b.txt")]}, {"text": "Done."}, tools=asking("write"))
    first, second = pending(workspace, run, 2)

    async def signal(argument: dict[str, Any]) -> None:
        await service.temporal.get_workflow_handle(run.id).signal("approve", argument)

    service.call(signal({"tool_use_id": second["tool_use_id"], "decision": "deny", "reason": "No."}))
    run.until(lambda _: "approval.resolved" in run.types())  # so that the gates are open: without one `{}` is of none
    service.call(signal({}))

    assert run.wait()["status"] == "completed"
    by_id = {found["id"]: found["status"] for found in workspace.get("/v1/approvals", run_id=run.id)["data"]}
    assert by_id == {first["id"]: "approved", second["id"]: "denied"}
    assert files(service, run) == ["a.txt"]


def test_a_decision_whose_request_died_before_it_was_delivered(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start({"tools": [write("a.txt"), write("b.txt")]}, {"text": "Done."}, tools=asking("write"))
    first, second = pending(workspace, run, 2)
    answers = AnswerService(RunClient(service.temporal))
    edited: dict[str, JsonValue] = {"file_path": "c.txt", "content": "y"}
    deny, approve = Decision(approve=False), Decision(approve=True, edited_input=edited)

    crashed(service, run.id, lambda _, unit: answers.decide(unit, first["id"], deny))
    crashed(service, run.id, lambda _, unit: answers.decide(unit, second["id"], approve))
    assert (run.row["status"], results(run)) == ("running", [])
    sweep(service)

    assert run.wait()["status"] == "completed"
    assert files(service, run) == ["c.txt"]
    assert len(results(run)) == 2


def test_bad_decisions(workspace: Workspace, service: ServiceThread) -> None:
    run = workspace.start({"tools": [write("a.txt")]}, {"text": "Done."}, tools=asking("write"))
    (approval,) = pending(workspace, run)

    workspace.post("/v1/approvals/appr_none/decision", {"decision": "approve"}, expect=404)
    decide(workspace, approval, 422, decision="perhaps")
    decide(workspace, approval, 422, decision="approve", remember="yes")
    with service.workspace() as other:
        other.get(f"/v1/approvals/{approval['id']}", expect=404)
        decide(other, approval, 404, decision="approve")
        assert other.get("/v1/approvals")["data"] == []
    assert run.row["status"] == "waiting"
