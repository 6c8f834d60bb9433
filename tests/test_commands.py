"""Pause, resume, cancel, terminate, input and retry: over HTTP, and from Temporal's own command line."""

import json
import subprocess
import time
from collections.abc import Callable

from commands.temporal_server import binary
from tests.service import RunView, ServiceThread, Workspace, is_delta

TEXT = "one two three four five six seven eight nine ten " * 8
SLOW = {"text": TEXT, "delay_ms": 100, "chunk_chars": 8}


def writing(run: RunView) -> None:
    """Return when the run's model call has written something."""
    run.stream(until=is_delta)


def temporal(service: ServiceThread, *arguments: str) -> str:
    done = subprocess.run(
        [binary(), *arguments, "--address", service.temporal_address], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cancel_reaches_the_call_in_flight(workspace: Workspace) -> None:
    run = workspace.start(SLOW)
    writing(run)

    asked = time.monotonic()
    assert run.command("cancel", {"reason": "enough"})["cancel_requested_at"] is not None
    row = run.wait(5)

    assert time.monotonic() - asked < 6  # a heartbeat time-out is 12 s; the figure itself is the bench's
    assert (row["status"], row["stop_reason"]["type"]) == ("cancelled", "interrupted")
    events = run.events()
    partial = next(event for event in events if event["type"] == "agent.message")
    assert partial["interrupted"]
    assert TEXT.startswith(partial["content"][0]["text"])
    assert events[-1]["reason"] == "enough"
    assert run.command("cancel", expect=409)["code"] == "run_finished"


def test_pause_now_keeps_the_text_and_resume_goes_on(workspace: Workspace) -> None:
    run = workspace.start(SLOW, {"text": "The rest."})
    writing(run)

    run.command("pause", {"mode": "now"})
    row = run.until(lambda row: row["status"] == "paused", 2)
    assert row["paused_at"] is not None
    run.command("pause")  # again: accepted
    assert run.types()[-1] == "run.paused"
    run.command("resume")
    row = run.wait()

    assert (row["status"], row["output"], row["pause_requested_at"]) == ("completed", "The rest.", None)
    assert run.types().count("run.resumed") == 1


def test_pause_waits_for_the_step_boundary(workspace: Workspace) -> None:
    first = {"text": "abc " * 40, "delay_ms": 100, "tools": [{"name": "read", "input": {"file_path": "none"}}]}
    run = workspace.start(first, {"text": "Done."}, tools=["read"])
    writing(run)

    run.command("pause")
    run.until(lambda row: row["status"] == "paused")

    types = run.types()
    assert types[-3:] == ["agent.tool_result", "session.status_idle", "run.paused"]
    message = next(event for event in run.events() if event["type"] == "agent.message")
    assert not message["interrupted"]
    run.command("resume")
    assert run.wait()["output"] == "Done."


def test_terminate_kills_and_settles(workspace: Workspace) -> None:
    run = workspace.start(SLOW)
    writing(run)

    run.command("terminate", {"reason": "now"})
    row = run.wait(5)

    assert row["status"] == "terminated"
    time.sleep(1)  # whatever was in flight has nothing more to say
    assert run.types()[-1] == "run.terminated"
    assert workspace.get(f"/v1/sessions/{row['session_id']}")["active_run_id"] is None


def test_a_question_waits_for_input_and_holds_nothing(workspace: Workspace) -> None:
    asks = {"tools": [{"name": "ask_user", "input": {"question": "Which colour?"}}]}
    run = workspace.start(asks, {"text": "Blue it is."}, tools=["ask_user"])

    row = run.until(lambda row: row["status"] == "waiting")
    assert row["waiting_for"] == "input"
    run.command("input", {"content": "blue"})
    row = run.wait()

    assert (row["status"], row["waiting_for"], row["output"]) == ("completed", None, "Blue it is.")
    answer = next(event for event in run.events() if event["type"] == "agent.tool_result")
    assert answer["content"][0]["text"] == "blue"


def test_a_cancelled_question_ends(workspace: Workspace) -> None:
    run = workspace.start({"tools": [{"name": "ask_user", "input": {"question": "?"}}]}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")
    run.command("cancel")
    assert run.wait(5)["status"] == "cancelled"


def test_input_to_a_running_run_is_read_before_it_ends(workspace: Workspace) -> None:
    agent = workspace.agent(model="demo:echo")["id"]
    run = workspace.start(text="first " * 200, agent=agent)
    writing(run)
    run.command("input", {"content": "second"})
    row = run.wait()

    assert row["output"] == "second"
    assert run.types().count("agent.message") == 2


def test_a_retry_in_the_moment_of_the_failure_is_not_lost(workspace: Workspace) -> None:
    """The row is over a little before the workflow is, which must not be taken for the retry's."""
    agent = workspace.agent()["id"]
    for _ in range(10):
        run = workspace.start({"fail": {"code": "rejected", "message": "no"}}, agent=agent)
        assert run.stream()[-1].data["status"] == "failed"
        run.command("retry")
        assert run.wait(10)["attempt"] == 2


def test_retry_continues_a_failed_run(workspace: Workspace) -> None:
    fails = {"fail": {"code": "auth", "message": "no"}}
    run = workspace.start({"text": "One.", "tools": [{"name": "read", "input": {"file_path": "x"}}]}, fails, tools=["read"])
    row = run.wait()
    assert (row["status"], row["error"]["code"]) == ("failed", "provider_auth")

    row = run.command("retry")
    assert (row["status"], row["attempt"]) == ("queued", 2)
    row = run.wait()
    assert (row["status"], row["attempt"]) == ("failed", 2)
    assert run.types().count("agent.tool_use") == 1  # what was done is not done again


def test_messages_to_a_busy_session_queue_in_order(workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    sent = [workspace.post(f"/v1/sessions/{session}/messages", {"content": f"message {n}"}) for n in range(4)]
    refused = workspace.post(f"/v1/sessions/{session}/messages", {"content": "no", "on_busy": "reject"}, expect=409)
    assert refused["code"] == "session_busy"
    for accepted in sent:
        RunView(workspace, accepted["run"]["id"]).wait()

    items = workspace.get(f"/v1/sessions/{session}/events", limit=1000, types=["agent.message"])["data"]
    assert [item["content"][0]["text"] for item in items] == [f"message {n}" for n in range(4)]
    row = workspace.get(f"/v1/sessions/{session}")
    assert (row["status"], row["active_run_id"], row["queue_length"], row["message_count"]) == ("idle", None, 0, 8)


def test_a_queued_turn_can_be_cancelled(workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    script = json.dumps({"script": [SLOW]})
    first = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": script})["run"]["id"])
    second = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": "later"})["run"]["id"])

    second.command("cancel")
    assert second.row["status"] == "cancelled"
    first.command("cancel")
    assert first.wait()["status"] == "cancelled"
    assert workspace.get(f"/v1/sessions/{session}")["status"] == "idle"


def test_temporal_command_line_signals_and_queries(
    service: ServiceThread, workspace: Workspace, record_property: Callable[[str, object], None]
) -> None:
    run = workspace.start(SLOW, {"text": "After."})
    writing(run)

    asked = time.monotonic()
    temporal(service, "workflow", "signal", "-w", run.id, "--name", "pause", "--input", '{"mode": "now"}')
    run.until(lambda row: row["status"] == "paused")
    settled_after = time.monotonic() - asked
    assert run.types()[-1] == "run.paused"
    assert workspace.get(f"/v1/sessions/{run.row['session_id']}")["status"] == "idle"
    state = temporal(service, "workflow", "query", "-w", run.id, "--type", "state", "-o", "json")
    assert '"paused"' in state
    shown = temporal(service, "workflow", "describe", "-w", run.id, "-o", "json")
    assert "PerdureStatus" in shown
    asked = time.monotonic()
    temporal(service, "workflow", "signal", "-w", run.id, "--name", "resume")
    run.until(lambda row: row["status"] != "paused")
    record_property("seconds", max(settled_after, time.monotonic() - asked))
    record_property("looked_at", 2)
    assert run.wait()["output"] == "After."


def test_temporal_command_line_cancels(
    service: ServiceThread, workspace: Workspace, record_property: Callable[[str, object], None]
) -> None:
    run = workspace.start(SLOW)
    writing(run)
    asked = time.monotonic()
    temporal(service, "workflow", "cancel", "-w", run.id)
    assert run.wait(5)["status"] == "cancelled"
    record_property("seconds", time.monotonic() - asked)
    assert run.types()[-1] == "run.cancelled"
    assert workspace.get(f"/v1/sessions/{run.row['session_id']}")["status"] == "idle"
    assert "CANCELED" in temporal(service, "workflow", "describe", "-w", run.id, "-o", "json")


def test_temporal_command_line_terminates_and_the_queue_goes_on(
    service: ServiceThread, workspace: Workspace, record_property: Callable[[str, object], None]
) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    script = json.dumps({"script": [SLOW]})
    first = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": script})["run"]["id"])
    following = {"content": json.dumps({"script": [{"text": "Next."}]})}
    second = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", following)["run"]["id"])
    writing(first)

    asked = time.monotonic()
    temporal(service, "workflow", "terminate", "-w", first.id)

    assert first.wait(60)["status"] == "terminated"
    second.until(lambda row: row["started_at"] is not None)
    record_property("seconds", time.monotonic() - asked)
    assert first.types()[-1] == "run.terminated"
    assert second.wait(30)["output"] == "Next."


def test_temporal_command_line_gives_input(service: ServiceThread, workspace: Workspace) -> None:
    asks = {"tools": [{"name": "ask_user", "input": {"question": "?"}}]}
    run = workspace.start(asks, {"text": "Thanks."}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")
    temporal(service, "workflow", "signal", "-w", run.id, "--name", "input", "--input", '{"text": "by hand"}')
    assert run.wait()["output"] == "Thanks."
    answer = next(event for event in run.events() if event["type"] == "user.answer")
    assert answer["content"][0]["text"] == "by hand"
