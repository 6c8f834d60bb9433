"""How a turn of a busy session ends, and what becomes of those that come after it."""

import json

from tests.service import RunView, Workspace
from tests.test_busy_sessions import SLOW, Talk, writing

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
