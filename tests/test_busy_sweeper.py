"""What a crash left of a command to a busy session is delivered."""

import re

from api.services.runs import NewRun
from api.services.sessions import SessionService
from domain.events import TextContent
from tests.service import RunView, ServiceThread, Workspace
from tests.sweeping import LONG, age, crashed, submitted, sweep


def test_a_paused_session_is_left_alone_and_its_resume_is_delivered(service: ServiceThread, workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    workspace.post(f"/v1/sessions/{session}/pause", expect=202)
    run = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": "patience"})["run"]["id"])
    age(service, run.id)
    sweep(service)
    assert (run.row["status"], workspace.get(f"/v1/sessions/{session}")["active_run_id"]) == ("queued", None)

    crashed(service, run.id, lambda runs, unit: SessionService(runs).resume(unit, session))
    assert run.row["status"] == "queued"
    sweep(service)
    assert run.wait(10)["output"] == "patience"


def test_a_pause_and_a_resume_of_a_session_that_were_never_delivered(service: ServiceThread, workspace: Workspace) -> None:
    run = workspace.start(LONG, {"text": "The rest."})
    run.until(lambda row: row["status"] == "running")
    session = run.row["session_id"]
    crashed(service, run.id, lambda runs, unit: SessionService(runs).pause(unit, session, "now"))
    sweep(service)
    run.until(lambda row: row["status"] == "paused", 5)
    crashed(service, run.id, lambda runs, unit: SessionService(runs).resume(unit, session))
    sweep(service)
    assert run.wait(10)["output"] == "The rest."


def test_a_resume_that_was_never_delivered_before_its_pause_had_come_about(
    service: ServiceThread, workspace: Workspace
) -> None:
    read = {"tools": [{"name": "read", "input": {"file_path": "none"}}]}
    run = workspace.start({"text": "abc " * 40, "delay_ms": 100, **read}, {"text": "The rest."}, tools=["read"])
    run.until(lambda row: row["status"] == "running")
    run.command("pause")
    crashed(service, run.id, lambda runs, unit: runs.resume(unit, run.id))
    run.until(lambda row: row["status"] == "paused", 10)
    age(service, run.id)
    sweep(service)
    assert run.wait(10)["output"] == "The rest."


def test_a_turn_interrupted_before_it_began_is_read_with_what_interrupted_it(
    service: ServiceThread, workspace: Workspace
) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="demo:echo")["id"]})["id"]
    first, _ = submitted(service, workspace, session, "one")
    steered = workspace.post(f"/v1/sessions/{session}/messages", {"content": "two", "on_busy": "steer"})
    new = NewRun((TextContent(text="three"),), on_busy="interrupt")
    _, row = crashed(service, first.id, lambda runs, unit: runs.submit(unit, session, new))
    sweep(service)
    second = RunView(workspace, row.id)
    assert second.wait(10)["output"] == "one two three", "all that it was told last"
    assert first.row["status"] == "cancelled"
    events = workspace.get(f"/v1/sessions/{session}/events", limit=1000)["data"]
    assert all(event["processed_at"] for event in events)
    steers = [(event["status"], event["run_id"]) for event in events if event.get("event_id") == steered["event"]["id"]]
    assert steers == [("accepted", first.id), ("deferred", second.id), ("applied", second.id)]
    markdown = workspace.http.get(f"/v1/sessions/{session}/export", params={"format": "markdown"}).text
    assert "withdrawn" not in markdown
    said = re.findall(r"^(?:## (?:User|Agent)|_The run|> .*)", markdown, re.MULTILINE)
    assert said == ["_The run", *("## User", "> one", "## User", "> two", "## User", "> three"), "## Agent", "> one two three"]
