"""Copies of a session in which a message came too late for the turn that it was steered into."""

import json
from typing import Any

from tests.service import RunView, Workspace
from tests.test_busy_sessions import READ, SLOW, Talk, writing


def said(workspace: Workspace, session: str) -> list[tuple[str, bool]]:
    """By whom, and whether it was interrupted."""
    found = workspace.get(f"/v1/sessions/{session}/events", limit=1000, types=["user.message", "agent.message"])["data"]
    return [(event["type"].partition(".")[0], event.get("interrupted", False)) for event in found]


def stopped(workspace: Workspace, *, paused: bool) -> tuple[Talk, dict[str, Any]]:
    """A turn that was cancelled as it wrote, and the message that was steered into it and is another's now."""
    talk = Talk(workspace)
    run = talk.run({**SLOW, **READ})
    writing(run)
    steered = talk.say({"text": "Steered."}, on_busy="steer")["event"]
    if paused:
        talk.command("pause")
    run.command("cancel")
    run.wait()
    return talk, steered


def test_one_that_still_waits_is_left_out(workspace: Workspace) -> None:
    talk, steered = stopped(workspace, paused=True)
    assert [item["event_id"] for item in talk.queue()] == [steered["id"]]
    copied = workspace.post(f"{talk.path}/fork", expect=201)["session"]["id"]
    imported = workspace.post("/v1/sessions/import", workspace.get(f"{talk.path}/export"), expect=201)["id"]
    for session in (copied, imported):
        assert said(workspace, session) == [("user", False), ("agent", True)]


def test_it_is_edited_where_the_next_turn_came_to_it(workspace: Workspace) -> None:
    talk, steered = stopped(workspace, paused=False)
    talk.runs()[0].wait()
    body = {"before_event_id": steered["id"], "content": json.dumps({"script": [{"text": "Instead."}]})}
    made = workspace.post(f"{talk.path}/fork", body, expect=201)
    assert RunView(workspace, made["run"]["id"]).wait()["output"] == "Instead."
    assert said(workspace, made["session"]["id"]) == [("user", False), ("agent", True), ("user", False), ("agent", False)]
