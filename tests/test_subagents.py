"""An agent delegates to others: each works in a run of its own, on a thread of its own, and no longer than the first."""

import json
import time
from collections.abc import Mapping
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsAgentReference, BetaManagedAgentsMultiagentCoordinator
from temporalio.client import WorkflowExecutionStatus

from tests.service import RunView, ServiceThread, Workspace
from workflows.client import RunClient


def delegate(agent: str, *steps: Mapping[str, Any], task: str | None = None) -> dict[str, Any]:
    return {"name": "delegate", "input": {"agent": agent, "task": task or json.dumps({"script": list(steps)})}}


def team(workspace: Workspace, *members: str, **multiagent: Any) -> str:
    """An agent that may delegate to those; returns its id."""
    ids = [workspace.agent(name=f"{name}", description=f"does {name}", **MEMBERS.get(name, {}))["id"] for name in members]
    roster = [*ids, {"type": "self"}]
    return workspace.agent(name="lead", multiagent={"type": "coordinator", "agents": roster, **multiagent})["id"]


MEMBERS: dict[str, dict[str, Any]] = {
    "asker": {"tools": ["ask_user"]},
    "writer": {"tools": [{"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}]},
}


def below(workspace: Workspace, run: RunView, count: int = 1, seconds: float = 15) -> list[RunView]:
    """The sub-agents that the run has started, the first first."""
    deadline = time.monotonic() + seconds
    while True:
        found = workspace.get("/v1/runs", parent_run_id=run.id, order="asc")["data"]
        if len(found) == count:
            return [RunView(workspace, row["id"]) for row in found]
        assert time.monotonic() < deadline, (found, run.row)
        time.sleep(0.02)


def results(run: RunView) -> list[tuple[str, bool]]:
    return [(e["content"][0]["text"], e["is_error"]) for e in run.events() if e["type"] == "agent.tool_result"]


def threads(workspace: Workspace, run: RunView) -> list[dict[str, Any]]:
    return workspace.get(f"/v1/sessions/{run.row['session_id']}/threads")["data"]


LONG = {"text": "long ", "words": 3000, "delay_ms": 30}


def test_three_at_once_each_on_a_thread_of_its_own(workspace: Workspace) -> None:
    lead = team(workspace, "one", "two", "three")
    asked = [delegate(name, {"text": f"{name} is done", "delay_ms": 5}) for name in ("one", "two", "three")]
    run = workspace.start({"tools": asked}, {"text": "All done."}, agent=lead)

    row = run.wait()

    assert (row["status"], row["output"]) == ("completed", "All done.")
    assert sorted(results(run)) == [(f"{name} is done", False) for name in ("one", "three", "two")]
    children = below(workspace, run, 3)
    assert {(child.row["kind"], child.row["status"]) for child in children} == {("subagent", "completed")}
    types = run.types()
    assert [types.count(type) for type in ("session.thread_created", "agent.thread_message_sent")] == [3, 3]
    assert types.count("agent.thread_message_received") == 3
    # The session is the primary thread's: two messages, idle at its end only, and every token counted once.
    session = workspace.get(f"/v1/sessions/{row['session_id']}")
    assert (session["message_count"], session["status"], session["active_run_id"]) == (2, "idle", None)
    assert session["last_message"]["text"] == "All done."
    used = [r.row["usage"]["output_tokens"] for r in (run, *children)]
    assert session["usage"]["output_tokens"] == sum(used)
    primary, *others = threads(workspace, run)
    assert (primary["parent_thread_id"], primary["run_id"]) == (None, None)
    assert {(t["parent_thread_id"], t["status"]) for t in others} == {(primary["id"], "idle")}
    path = f"/v1/sessions/{row['session_id']}/threads/{others[0]['id']}"
    assert workspace.get(path)["agent"]["name"] in ("one", "two", "three")
    log = workspace.get(f"{path}/events")["data"]
    assert {event["session_thread_id"] for event in log} == {others[0]["id"]}
    assert [e["type"] for e in log if e["type"].startswith("session.")] == [
        "session.thread_status_running",
        "session.thread_status_idle",
    ]
    items = workspace.get(f"/v1/sessions/{row['session_id']}/items")["data"]
    assert [item["type"] for item in items] == ["message", "tool_use", "tool_use", "tool_use", "message"]


def test_transcripts_stay_apart(workspace: Workspace) -> None:
    """The model `echo` answers with the last message that it was sent."""
    echo = workspace.agent(name="echo", model="demo:echo")["id"]
    lead = workspace.agent(name="lead", multiagent={"agents": [echo]})["id"]
    session = workspace.post("/v1/sessions", {"agent": lead})["id"]
    step = {"tools": [delegate("echo", task="first task"), delegate("echo", task="second task")]}
    run = workspace.start(step, {"text": "Thanks."}, agent=lead, session_id=session)

    assert run.wait()["status"] == "completed"
    assert sorted(results(run)) == [("first task", False), ("second task", False)]
    again = workspace.post(f"/v1/sessions/{session}/messages", {"content": json.dumps({"script": [{"text": "Hello."}]})})
    row = RunView(workspace, again["run"]["id"]).wait()
    assert row["output"] == "Hello."


def test_what_a_sub_agent_writes_costs_the_first_no_input(workspace: Workspace) -> None:
    """Were its thread read into the conversation, the call after it would be sent all of its 5,000 words."""
    lead = team(workspace, "one", result_chars=200)
    run = workspace.start({"tools": [delegate("one", {"text": "long ", "words": 5000})]}, {"text": "End."}, agent=lead)

    assert run.wait()["status"] == "completed"
    (child,) = below(workspace, run)
    assert child.row["usage"]["output_tokens"] > 5000
    assert run.row["usage"]["input_tokens"] < 2000


def test_nested_to_the_depth_and_no_deeper(workspace: Workspace) -> None:
    lead = team(workspace, max_depth=2)
    deepest = {"tools": [delegate("lead", {"text": "too deep"})]}, {"text": "did it myself"}
    middle = {"tools": [delegate("lead", *deepest)]}, {"text": "from the middle"}
    run = workspace.start({"tools": [delegate("lead", *middle)]}, {"text": "top"}, agent=lead)

    assert run.wait()["status"] == "completed"
    assert results(run) == [("from the middle", False)]
    (second,) = below(workspace, run)
    (third,) = below(workspace, second)
    assert results(second) == [("did it myself", False)]
    assert results(third) == [("agents are nested as deep as they may be: do this yourself", True)]
    assert below(workspace, third, 0) == []
    by_run = {thread["run_id"]: thread for thread in threads(workspace, run)}
    assert by_run[third.id]["parent_thread_id"] == by_run[second.id]["id"]
    session = workspace.get(f"/v1/sessions/{run.row['session_id']}")
    assert session["usage"]["output_tokens"] == sum(r.row["usage"]["output_tokens"] for r in (run, second, third))


def test_no_more_at_once_than_the_agent_says(workspace: Workspace) -> None:
    lead = team(workspace, "one", max_concurrent=2)
    step = {"text": "done ", "words": 20, "delay_ms": 20}
    run = workspace.start({"tools": [delegate("one", step) for _ in range(5)]}, {"text": "End."}, agent=lead)

    assert run.wait()["status"] == "completed"
    rows = [child.row for child in below(workspace, run, 5)]
    moments = sorted([(row["created_at"], 1) for row in rows] + [(row["finished_at"], -1) for row in rows])
    at_once, most = 0, 0
    for _, change in moments:
        at_once += change
        most = max(most, at_once)
    assert most == 2


def test_a_long_answer_is_shortened_and_the_thread_has_the_rest(workspace: Workspace) -> None:
    lead = team(workspace, "one", result_chars=200)
    run = workspace.start({"tools": [delegate("one", {"text": "start ", "words": 300})]}, {"text": "End."}, agent=lead)

    assert run.wait()["status"] == "completed"
    ((text, _),) = results(run)
    (child,) = below(workspace, run)
    thread = threads(workspace, run)[1]["id"]
    assert text.startswith("start ")
    assert thread in text
    assert 200 < len(text) < 320
    assert child.row["output"].endswith(text[-60:])


def test_how_a_sub_agent_fails_is_for_the_model_to_read(workspace: Workspace) -> None:
    lead = team(workspace, "one")
    failing = delegate("one", {"fail": {"code": "rejected", "message": "no such thing"}})
    run = workspace.start({"tools": [failing, delegate("nobody", {"text": "x"})]}, {"text": "So be it."}, agent=lead)

    assert run.wait()["status"] == "completed"
    (child,) = below(workspace, run)
    assert child.row["status"] == "failed"
    texts = sorted(results(run))
    assert texts[0][0].startswith("The sub-agent failed: ")
    assert "no such thing" in texts[0][0]
    assert texts[1] == ("there is no agent 'nobody' to delegate to; there are: one, lead", True)
    child.command("retry", expect=409)


def test_a_limit_is_shared_by_the_tree(workspace: Workspace) -> None:
    lead = team(workspace, "one", "two")
    greedy = [delegate("one", *[{"text": "b", "usage": {"output_tokens": 60}, "stop_reason": "continue"}] * 9, LONG)]
    slow = delegate("two", LONG)
    run = workspace.start(
        {"tools": [*greedy, slow], "usage": {"output_tokens": 10}},
        agent=lead,
        limits={"max_output_tokens": 200},
    )

    row = run.wait(20)

    assert (row["status"], row["stop_reason"]["type"]) == ("completed", "max_tokens")
    children = {child.row["agent"]["name"]: child for child in below(workspace, run, 2)}
    one, two = children["one"], children["two"]
    assert (one.row["status"], one.row["stop_reason"]["type"]) == ("completed", "max_tokens")
    assert two.row["status"] == "cancelled"
    assert one.row["usage"]["output_tokens"] < 300


@pytest.mark.parametrize("how", ["cancel", "terminate", "temporal cancel", "temporal terminate"])
def test_what_ends_the_run_ends_the_tree(service: ServiceThread, workspace: Workspace, how: str) -> None:
    lead = team(workspace, "one", "writer")
    inner = {"tools": [delegate("one", LONG)]}, {"text": "x"}
    asks = delegate("writer", {"tools": [{"name": "write", "input": {"file_path": "a", "content": "b"}}]})
    run = workspace.start({"tools": [delegate("one", LONG), delegate("lead", *inner), asks]}, agent=lead)
    children = below(workspace, run, 3)
    lead_below = next(child for child in children if child.row["agent"]["name"] == "lead")
    tree = [*children, *below(workspace, lead_below)]
    run.until(lambda _: all("span.model_request_start" in child.types() for child in tree))
    run.until(lambda _: len(workspace.get("/v1/approvals", status="pending")["data"]) == 1)

    if how in ("cancel", "terminate"):
        run.command(how, {"reason": "Enough."})
        assert workspace.get("/v1/approvals", status="pending")["data"] == []  # at once
    else:
        handle = service.temporal.get_workflow_handle(run.id)
        service.call(handle.cancel() if how == "temporal cancel" else handle.terminate("by hand"))
        if how == "temporal terminate":
            service.call(RunClient(service.temporal, service.settings.task_queue).settle(run.id))  # what a sweep does

    status = "terminated" if "terminate" in how else "cancelled"
    assert run.wait()["status"] == status
    rows = [child.until(lambda row: row["finished_at"] is not None, 5) for child in tree]
    assert {row["status"] for row in rows} == {status}
    assert workspace.get("/v1/approvals", status="pending")["data"] == []
    states = [thread["status"] for thread in threads(workspace, run)]
    assert states == ["idle", *["terminated"] * 4]
    for child in tree:
        found = service.call(service.temporal.get_workflow_handle(child.id).describe())
        deadline = time.monotonic() + 5
        while found.status == WorkflowExecutionStatus.RUNNING:
            assert time.monotonic() < deadline
            found = service.call(service.temporal.get_workflow_handle(child.id).describe())


def test_a_pause_and_its_end_reach_the_tree(workspace: Workspace) -> None:
    lead = team(workspace, "one")
    writing = {"text": "some ", "words": 150, "delay_ms": 30}
    inner = {"tools": [delegate("one", writing)]}, {"text": "inner"}
    run = workspace.start({"tools": [delegate("one", writing), delegate("lead", *inner)]}, {"text": "End."}, agent=lead)
    first, second = below(workspace, run, 2)
    tree = [run, first, second, *below(workspace, second if second.row["agent"]["name"] == "lead" else first)]
    run.until(lambda _: all("span.model_request_start" in child.types() for child in tree))

    run.command("pause", {"mode": "now"})
    for one in tree:
        one.until(lambda row: row["status"] == "paused")
    session = workspace.get(f"/v1/sessions/{run.row['session_id']}")
    assert (session["status"], session["active_run_id"]) == ("idle", run.id)
    run.command("resume")
    run.until(lambda row: row["status"] == "running")

    assert run.wait()["status"] == "completed"
    assert {one.row["status"] for one in tree} == {"completed"}
    assert run.types().count("run.resumed") == 1


def test_a_question_and_an_approval_inside_a_sub_agent(workspace: Workspace) -> None:
    lead = team(workspace, "asker", "writer")
    asks = delegate("asker", {"tools": [{"name": "ask_user", "input": {"question": "Which?"}}]}, {"text": "Thanks."})
    writes = delegate("writer", {"tools": [{"name": "write", "input": {"file_path": "a", "content": "b"}}]}, {"text": "Done."})
    run = workspace.start({"tools": [asks, writes]}, {"text": "End."}, agent=lead)
    children = {child.row["agent"]["name"]: child for child in below(workspace, run, 2)}
    by_run = {thread["run_id"]: thread["id"] for thread in threads(workspace, run)}
    asker, writer = children["asker"], children["writer"]
    asker.until(lambda row: row["waiting_for"] == "input")
    writer.until(lambda row: row["waiting_for"] == "approval")

    (approval,) = workspace.get("/v1/approvals", status="pending")["data"]
    assert (approval["run_id"], approval["session_thread_id"]) == (writer.id, by_run[writer.id])
    assert approval["on_timeout"] == "deny"  # a task, which perhaps nobody watches
    assert run.row["status"] == "running"
    workspace.post(f"/v1/approvals/{approval['id']}/decision", {"decision": "approve"})
    asker.command("input", {"content": "the red one"})

    assert run.wait()["status"] == "completed"
    assert sorted(results(run)) == [("Done.", False), ("Thanks.", False)]
    assert ("the red one", False) in results(asker)


def test_a_person_is_asked_before_something_is_delegated(workspace: Workspace) -> None:
    lead = team(workspace, "one", permission_policy={"type": "always_ask"})
    run = workspace.start(
        {"tools": [delegate("one", {"text": "a"}), delegate("one", {"text": "b"})]}, {"text": "End."}, agent=lead
    )
    run.until(lambda row: row["waiting_for"] == "approval")
    first, second = workspace.get("/v1/approvals", status="pending", order="asc")["data"]
    assert below(workspace, run, 0) == []

    edited = {"agent": "one", "task": json.dumps({"script": [{"text": "c"}]})}
    workspace.post(f"/v1/approvals/{first['id']}/decision", {"decision": "approve", "input": edited})
    workspace.post(f"/v1/approvals/{second['id']}/decision", {"decision": "deny", "reason": "No."})

    assert run.wait()["status"] == "completed"
    approved, denied = sorted(results(run))
    assert denied == ("A person denied this call: No.", True)
    assert approved[0].startswith("A person changed the arguments of this call")
    assert approved[0].endswith("\n\nc")


def test_the_anthropic_package_sees_threads(service: ServiceThread, workspace: Workspace) -> None:
    client = anthropic.Anthropic(base_url=service.url, api_key=workspace.key)
    one = workspace.agent(name="one")["id"]
    roster: Any = {"type": "coordinator", "agents": [one, {"type": "self"}]}
    lead = client.beta.agents.create(name="lead", model="demo:script", multiagent=roster)
    assert isinstance(lead.multiagent, BetaManagedAgentsMultiagentCoordinator)
    assert all(isinstance(entry, BetaManagedAgentsAgentReference) for entry in lead.multiagent.agents)
    assert [entry.model_dump()["id"] for entry in lead.multiagent.agents] == [one, lead.id]
    run = workspace.start({"tools": [delegate("one", {"text": "hi"})]}, {"text": "End."}, agent=lead.id)
    session_id = run.wait()["session_id"]

    primary, other = list(client.beta.sessions.threads.list(session_id))
    assert (primary.parent_thread_id, other.parent_thread_id) == (None, primary.id)
    found = client.beta.sessions.threads.retrieve(other.id, session_id=session_id)
    assert found.agent.model_dump()["name"] == "one"
    inside = [event.type for event in client.beta.sessions.threads.events.list(other.id, session_id=session_id)]
    assert "agent.message" in inside
    shown = list(client.beta.sessions.events.list(session_id, limit=1000))
    types = [event.type for event in shown]
    assert types.count("agent.message") == 1
    assert types.count("session.thread_created") == types.count("session.thread_status_idle") == 1
    assert type(shown[types.index("session.thread_created")]).__name__ == "BetaManagedAgentsSessionThreadCreatedEvent"
    streamed = workspace.stream(
        f"/v1/sessions/{session_id}/events/stream", until=lambda f: f.event == "session.status_idle", after=0
    )
    assert [f.event for f in streamed].count("agent.message") == 2  # who is not the SDK sees all threads
    of_thread = workspace.stream(
        f"/v1/sessions/{session_id}/threads/{other.id}/stream", until=lambda f: f.event == "run.completed", after=0
    )
    assert {f.data["session_thread_id"] for f in of_thread} == {other.id}


def test_a_roster_is_pinned_and_checked(workspace: Workspace) -> None:
    one = workspace.agent(name="one")
    gone = workspace.agent(name="gone")["id"]
    workspace.post(f"/v1/agents/{gone}/archive")
    body = {"name": "lead", "model": "demo:script"}

    for agents, where in (
        (["one", "nobody"], 1),
        ([gone], 0),
        ([{"type": "agent", "id": one["id"], "version": 9}], 0),
        ([one["id"], "one"], 1),
    ):
        problem = workspace.post("/v1/agents", {**body, "multiagent": {"agents": agents}}, expect=422)
        assert problem["errors"][0]["pointer"] == f"/multiagent/agents/{where}", problem
    workspace.post("/v1/agents", {**body, "multiagent": {"agents": []}}, expect=422)
    taken = {"type": "custom", "name": "delegate", "description": "x", "input_schema": {"type": "object"}}
    workspace.post("/v1/agents", {**body, "tools": [taken]}, expect=422)
    workspace.post("/v1/runs", {"agent": {**body, "multiagent": {"agents": ["nobody"]}}, "input": "x"}, expect=422)

    lead = workspace.post("/v1/agents", {**body, "multiagent": {"agents": ["one", {"type": "self"}]}})
    pinned = {"type": "agent", "id": one["id"], "version": 1, "name": "one"}
    assert lead["multiagent"]["agents"] == [pinned, {"type": "agent", "id": lead["id"], "version": 1}]
    again = workspace.post(f"/v1/agents/{lead['id']}", {"version": 1, "multiagent": lead["multiagent"]})
    assert again["version"] == 1  # what is shown may be sent back
    # one → lead → one (v1): a cycle, which one level of delegation does not reach.
    cycle = {"multiagent": {"agents": ["lead"], "max_depth": 1}}
    assert workspace.post(f"/v1/agents/{one['id']}", cycle, expect=422)["errors"][0]["pointer"] == "/multiagent/agents"
    assert workspace.post(f"/v1/agents/{one['id']}", {"multiagent": {"agents": ["lead"]}})["version"] == 2
    assert workspace.post(f"/v1/agents/{one['id']}", {"multiagent": None})["multiagent"] is None


def test_threads_are_listed_by_page_and_by_status(workspace: Workspace) -> None:
    lead = team(workspace, "one")
    run = workspace.start({"tools": [delegate("one", {"text": "x"}) for _ in range(3)]}, {"text": "End."}, agent=lead)
    path = f"/v1/sessions/{run.wait()['session_id']}/threads"
    every = [thread["id"] for thread in workspace.get(path)["data"]]
    assert len(every) == 4

    for limit in (1, 2, 3):
        found: list[str] = []
        page: str | None = None
        while True:
            more: dict[str, Any] = {} if page is None else {"page": page}
            answer = workspace.get(path, limit=limit, **more)
            found += [thread["id"] for thread in answer["data"]]
            page = answer["next_page"]
            if page is None:
                break
        assert found == every
    assert len(workspace.get(path, statuses=["idle"])["data"]) == 4
    assert workspace.get(path, statuses=["terminated", "rescheduling"])["data"] == []
