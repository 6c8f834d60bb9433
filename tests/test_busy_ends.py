"""How a turn of a busy session ends, and what becomes of those that come after it."""

import json
from pathlib import Path
from typing import Any

import pytest

from activities.records import RecordActivities
from domain.commands import FinishInput
from storage.journal import read
from tests.service import RunView, ServiceThread, Workspace
from tests.test_busy_sessions import ASKING, ASKS, READ, SLOW, Talk, writing

LEAD = {"name": "lead", "multiagent": {"agents": [{"type": "self"}]}}


def delegating(talk: Talk) -> tuple[RunView, str]:
    """A turn whose sub-agent is writing, and the sub-agent's thread."""
    task = json.dumps({"script": [SLOW]})
    run = talk.run({"tools": [{"name": "delegate", "input": {"agent": "lead", "task": task}}]}, {"text": "The end."})
    path = f"/v1/runs/{run.id}/events/stream"
    talk.workspace.stream(path, until=lambda frame: frame.event == "session.thread_created")
    thread = next(found for found in talk.workspace.get(f"{talk.path}/threads")["data"] if found["parent_thread_id"])
    writing(RunView(talk.workspace, thread["run_id"]))
    return run, thread["id"]


def test_one_sub_agent_is_interrupted_by_its_thread(workspace: Workspace) -> None:
    talk = Talk(workspace, LEAD)
    run, thread = delegating(talk)

    interrupt = {"type": "user.interrupt", "session_thread_id": thread}
    (sent,) = workspace.post(f"{talk.path}/events", {"events": [interrupt]}, expect=200)["data"]

    assert (sent["session_thread_id"], sent["processed_at"]) == (thread, None)
    assert run.wait()["output"] == "The end."
    assert RunView(workspace, sent["run_id"]).row["status"] == "cancelled"
    assert talk.processed(sent["id"])
    unknown = {"type": "user.interrupt", "session_thread_id": "sthr_x"}
    workspace.post(f"{talk.path}/events", {"events": [unknown]}, expect=404)


def test_a_message_behind_the_interrupt_of_a_sub_agent_interrupts_nothing_else(workspace: Workspace) -> None:
    talk = Talk(workspace, LEAD)
    run, thread = delegating(talk)
    interrupt = {"type": "user.interrupt", "session_thread_id": thread}
    said = {"type": "user.message", "content": [{"type": "text", "text": json.dumps({"script": [{"text": "Next."}]})}]}

    _, message = workspace.post(f"{talk.path}/events", {"events": [interrupt, said]}, expect=200)["data"]

    assert RunView(workspace, message["run_id"]).wait()["output"] == "Next."
    assert (run.row["status"], run.row["output"]) == ("completed", "The end.")


def test_a_turn_of_steered_messages_is_cancelled_like_any_other(service: ServiceThread, tmp_path: Path) -> None:
    """Also before it has begun to call its model, for which it may wait long."""
    (tmp_path / "perdure.toml").write_text('[providers.narrow]\nkind = "scripted"\nconcurrency = 1\n')
    with ServiceThread(tmp_path, None, temporal=service.temporal_address) as narrow, narrow.workspace() as workspace:
        first = Talk(workspace, {"model": "narrow:script"}).run({"text": "word " * 4000, "delay_ms": 50})
        first.until(lambda row: row["status"] == "running")
        talk = Talk(workspace, {"model": "narrow:script"})
        run = talk.run({"text": "Never."})
        for text in ("Steered.", "Steered too."):
            talk.say({"text": text}, on_busy="steer")
        run.command("cancel")
        run.wait()
        turn = RunView(workspace, talk.row["active_run_id"])

        turn.command("cancel")

        assert turn.wait()["status"] == "cancelled"
        assert talk.row["active_run_id"] is None
        assert {found.id for found in talk.runs()} == {run.id, turn.id}
        turn.command("retry")
        first.command("cancel")
        assert turn.wait()["output"] == "Steered too.", "it still has what was handed on to it"


def test_an_end_that_is_written_again_leaves_the_retry_alone(service: ServiceThread, workspace: Workspace) -> None:
    """As by a worker that was lost before it could report, or by a sweep that has looked before the retry."""
    talk = Talk(workspace)
    run = talk.run(SLOW, SLOW)
    writing(run)
    run.command("cancel")
    run.wait()
    run.command("retry")
    writing(run)
    talk.say({"text": "Steered."}, on_busy="steer")
    again = FinishInput(run_id=run.id, session_id=talk.id, attempt=1, status="cancelled", stop_type="interrupted")

    records = RecordActivities(service.parts.database, service.parts.routes)
    assert service.call(records.finish(again)).next_run is None

    assert talk.row["active_run_id"] == run.id
    assert run.wait()["output"] == "Steered."
    assert [found.id for found in talk.runs()] == [run.id]


def test_nothing_is_retried_in_a_session_that_is_archived(workspace: Workspace) -> None:
    talk = Talk(workspace)
    run = talk.run({"fail": {"code": "rejected", "message": "no"}})
    run.wait()
    talk.command("pause")
    queued = talk.run({"text": "Never."})
    workspace.post(f"{talk.path}/archive", expect=200)
    talk.command("resume")
    for over in (queued, run):
        assert over.command("retry", expect=409)["code"] == "archived"
    assert (run.row["status"], queued.row["status"]) == ("failed", "cancelled")


def test_what_a_retried_turn_has_read_is_not_edited(workspace: Workspace) -> None:
    talk = Talk(workspace)
    sent = talk.say({"fail": {"code": "rejected", "message": "no"}})
    run = RunView(workspace, sent["run"]["id"])
    run.wait()
    talk.command("pause")
    run.command("retry")
    path = f"{talk.path}/queue/{sent['event']['id']}"
    assert workspace.http.patch(path, json={"content": "x"}).json()["code"] == "already_started"
    assert talk.events("user.message")[0]["content"] == sent["event"]["content"]
    assert workspace.http.patch(path, json={"position": 1}).status_code == 200
    assert workspace.http.delete(path).status_code == 200
    assert run.row["status"] == "cancelled"


def test_a_session_begins_with_more_messages_than_may_wait(workspace: Workspace) -> None:
    """The `anthropic` package allows 50."""
    said = [{"type": "user.message", "content": [{"type": "text", "text": f"message {n}"}]} for n in range(30)]
    talk = Talk(workspace, {"model": "demo:echo"}, initial_events=said)
    newest = talk.runs()[0]
    assert newest.wait()["output"] == "message 29"
    assert talk.answers() == [f"message {n}" for n in range(30)]


def test_a_result_that_never_comes_is_not_looked_for_behind_its_turn(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(workspace, {"tools": [ASKING, "read"]})
    run = talk.run(ASKS)
    run.until(lambda row: row["waiting_for"] == "approval")
    run.command("terminate")
    run.wait()
    for _ in range(3):
        talk.run(READ, {"text": "Read."}).wait()
    pages = 0

    async def counted(*place: Any, **wanted: Any) -> Any:
        nonlocal pages
        pages += 1
        return await read(*place, **wanted)

    monkeypatch.setattr("api.routes.events.read", counted)
    monkeypatch.setattr("api.routes.events.RESULTS_PAGE", 1)
    (_, use) = workspace.get(f"{talk.path}/items", limit=2)["data"]
    assert (use["name"], use["result"], pages) == ("write", None, 2)
    items = workspace.get(f"{talk.path}/items")["data"]
    assert [item["result"] is not None for item in items if item["type"] == "tool_use"] == [False, True, True, True]


def test_what_was_steered_beside_a_message_outlives_its_removal(workspace: Workspace) -> None:
    """Both became one turn, which the first one names."""
    talk = Talk(workspace)
    run = talk.run({**SLOW, **READ})
    writing(run)
    known = [{"type": "text", "text": "The user looks at invoice 17."}]
    first = {"type": "user.message", "content": [{"type": "text", "text": "first"}]}
    body = {"events": [first, {"type": "system.message", "content": known}]}
    workspace.post(f"/v1/sessions/{talk.id}", {"on_busy": "steer"}, expect=200)
    one, _ = workspace.post(f"{talk.path}/events", body, expect=200)["data"]
    two = talk.say({"text": "Of the second."})["event"]
    talk.command("pause")
    run.command("cancel")
    run.wait()
    assert [(item["event_id"], item["position"]) for item in talk.queue()] == [(one["id"], 1), (two["id"], 1)]

    assert workspace.http.delete(f"{talk.path}/queue/{one['id']}").status_code == 200

    assert [item["event_id"] for item in talk.queue()] == [two["id"]]
    talk.command("resume")
    assert talk.runs()[0].wait()["output"] == "Of the second."
    (told,) = talk.events("system.message")
    assert (told["processed_at"], talk.processed(one["id"])) == (None, False), "it went with the message that it came with"


def test_each_message_that_a_waiting_turn_will_read_is_an_item_of_the_queue(workspace: Workspace) -> None:
    """Steered into a turn that ended first, or sent to one that waits."""
    talk = Talk(workspace)
    run = talk.run({**SLOW, **READ})
    writing(run)
    steered = [talk.say(text=text, on_busy="steer")["event"]["id"] for text in ("one", "two", "three")]
    talk.command("pause")
    run.command("cancel")
    run.wait()
    first, second, third = talk.queue()
    assert [item["event_id"] for item in (first, second, third)] == steered
    assert len({item["run_id"] for item in (first, second, third)}) == 1
    last = talk.say({"text": "Of the last."})
    RunView(workspace, last["run"]["id"]).command("input", {"content": "and four"})

    def path(event_id: str) -> str:
        return f"{talk.path}/queue/{event_id}"

    edited = workspace.http.patch(path(steered[2]), json={"content": json.dumps({"script": [{"text": "Of the third."}]})})
    assert (edited.json()["event_id"], edited.json()["position"]) == (steered[2], 1)
    assert workspace.http.delete(path(steered[1])).status_code == 200
    assert workspace.http.delete(path(steered[1])).json()["code"] == "already_started", "once is enough"
    assert [item["event_id"] for item in talk.queue()][:3] == [steered[0], steered[2], last["event"]["id"]]
    moved = workspace.http.patch(path(steered[2]), json={"position": 2}).json()
    assert moved["position"] == 2
    assert [(item["content"][0]["text"], item["position"]) for item in talk.queue() if item["run_id"] == last["run"]["id"]] == [
        (last["event"]["content"][0]["text"], 1),
        ("and four", 1),
    ]
    assert workspace.http.delete(path(last["event"]["id"])).status_code == 200
    assert [item["position"] for item in talk.queue()] == [1, 2, 2], "what else it would have read is not lost"
    script = json.dumps({"script": [{"text": "Of the fourth."}]})
    assert workspace.http.patch(path(talk.queue()[0]["event_id"]), json={"content": script}).status_code == 200

    talk.command("resume")

    RunView(workspace, first["run_id"]).wait()
    assert talk.answers()[1:] == ["Of the fourth.", "Of the third."]
    assert [talk.processed(id) for id in (*steered, last["event"]["id"])] == [True, False, True, False]
    assert workspace.http.patch(path(steered[0]), json={"content": "x"}).json()["code"] == "already_started"
