"""`system.message`: what whoever operates the agent tells the model with a message or a tool result."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from domain.completions import Text, ToolResult
from domain.transcript import SYSTEM_NOTE, fold
from tests.conversations import check_transcript, events, transcript
from tests.service import RunView, Workspace, is_delta

SLOW = {"text": "one two three four five six seven eight nine ten " * 8, "delay_ms": 100, "chunk_chars": 8}
READ = {"tools": [{"name": "read", "input": {"file_path": "none"}}]}
PAY: Any = {"type": "custom", "name": "pay", "description": "Pays.", "input_schema": {"type": "object"}}
ECHO = {"model": "demo:echo"}


def told(text: str) -> dict[str, Any]:
    return {"type": "system.message", "content": [{"type": "text", "text": text}]}


def says(*steps: Mapping[str, Any], text: str | None = None) -> dict[str, Any]:
    content = text or json.dumps({"script": steps})
    return {"type": "user.message", "content": [{"type": "text", "text": content}]}


class Talk:
    def __init__(self, workspace: Workspace, agent: Mapping[str, Any] | None = None, **members: Any) -> None:
        self.workspace = workspace
        made = workspace.agent(**{"tools": ["read", PAY], **(agent or {})})["id"]
        self.id = workspace.post("/v1/sessions", {"agent": made, **members}, expect=201)["id"]
        self.path = f"/v1/sessions/{self.id}"

    def send(self, *posted: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.workspace.post(f"{self.path}/events", {"events": posted}, expect=200)["data"]

    def run(self, *posted: Mapping[str, Any]) -> RunView:
        return RunView(self.workspace, self.send(*posted)[-1]["run_id"])

    def log(self, *types: str) -> list[dict[str, Any]]:
        return self.workspace.get(f"{self.path}/events", limit=1000, types=types)["data"]

    def answers(self) -> list[str]:
        return [event["content"][0]["text"] for event in self.log("agent.message")]

    def seen(self) -> list[list[str]]:
        """What the model got of others at its last call, message by message."""
        kept = events(self.workspace, self.id)
        last = max(at for at, event in enumerate(kept, 1) if event.type == "span.model_request_start")
        messages = fold(kept[:last])
        check_transcript(messages)
        return [
            [
                f"result: {b.content}" if isinstance(b, ToolResult) else b.text
                for b in m.content
                if isinstance(b, Text | ToolResult)
            ]
            for m in messages
            if m.role == "user"
        ]


def test_the_model_reads_it_behind_its_message_and_in_later_turns(workspace: Workspace) -> None:
    talk = Talk(workspace, ECHO)
    message, system = talk.send(says(text="Where am I?"), told("The user is in {Rome}."))
    assert (system["type"], system["run_id"], system["processed_at"]) == ("system.message", message["run_id"], None)
    assert RunView(workspace, message["run_id"]).wait()["status"] == "completed"
    note = SYSTEM_NOTE.format("The user is in {Rome}.")
    assert talk.answers() == [f"Where am I? {note}"]
    assert talk.log("system.message")[0]["processed_at"] == talk.log("user.message")[0]["processed_at"] is not None

    # It is no message of anybody's, but there for people to read.
    row = workspace.get(talk.path)
    assert (row["message_count"], row["last_message"]["role"]) == (2, "agent")
    items = workspace.get(f"{talk.path}/items")["data"]
    assert [(item["type"], item["role"]) for item in items] == [("message", r) for r in ("user", "system", "agent")]
    assert items[1]["content"] == [{"type": "text", "text": "The user is in {Rome}."}]
    markdown = workspace.http.get(f"{talk.path}/export", params={"format": "markdown"}).text
    assert markdown.index("## User") < markdown.index("## System") < markdown.index("## Agent")

    talk.run(says(text="And now?")).wait()
    assert talk.seen() == [["Where am I?", note], ["And now?"]]


@pytest.mark.parametrize(
    ("posted", "at", "why"),
    [
        ([told("a")], 0, "right behind"),
        ([told("a"), says(text="x")], 0, "as the last event"),
        ([says(text="x"), told("a"), told("b")], 1, "one `system.message`"),
        ([says(text="x"), told("a"), says(text="y")], 1, "as the last event"),
        ([says(text="x"), {"type": "user.interrupt"}, told("a")], 2, "right behind"),
    ],
)
def test_it_comes_last_and_right_behind_what_it_goes_with(
    workspace: Workspace, posted: list[dict[str, Any]], at: int, why: str
) -> None:
    talk = Talk(workspace)
    refused = workspace.post(f"{talk.path}/events", {"events": posted}, expect=422)
    (fault,) = refused["errors"]
    assert (fault["pointer"], refused["code"]) == (f"/events/{at}", "invalid_request")
    assert why in fault["detail"]
    assert talk.log() == []


def test_it_is_text(workspace: Workspace) -> None:
    talk = Talk(workspace)
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    for content in ([], [image], "text"):
        system = {"type": "system.message", "content": content}
        workspace.post(f"{talk.path}/events", {"events": [says(text="x"), system]}, expect=422)
    assert talk.log() == []


@pytest.mark.parametrize("ending", [None, "cancel"])
def test_it_is_steered_with_its_message(workspace: Workspace, ending: str | None) -> None:
    """Also when the turn ends before it has read them: the next turn reads both."""
    talk = Talk(workspace, on_busy="steer", queue_depth=2)
    run = talk.run(says({**SLOW, **READ}, {"text": "Unsteered."}))
    run.stream(until=is_delta)
    message, system = talk.send(says({"text": "Steered."}), told("Now."))
    assert message["run_id"] == system["run_id"] == run.id
    (too,) = talk.send(says({"text": "Steered too."}))  # the first two take the room of one message
    if ending:
        run.command(ending)
    run.wait()
    last = RunView(workspace, workspace.get("/v1/runs", session_id=talk.id)["data"][0]["id"])
    assert last.wait()["output"] == "Steered too."
    assert (last.id == run.id) == (ending is None)
    first, second = (event["content"][0]["text"] for event in (message, too))
    assert talk.seen()[-1][-3:] == [first, SYSTEM_NOTE.format("Now."), second]
    assert all(event["processed_at"] for event in talk.log("user.message", "system.message"))
    applied = [event["event_id"] for event in talk.log("session.steer") if event["status"] == "applied"]
    assert system["id"] not in applied


def test_it_waits_and_goes_with_its_message_in_the_queue(workspace: Workspace) -> None:
    talk = Talk(workspace, ECHO)
    workspace.post(f"{talk.path}/pause", expect=202)
    removed, gone = talk.send(says(text="removed"), told("of the removed"))
    edited, _ = talk.send(says(text="before"), told("of the edited"))
    row = workspace.get(talk.path)
    assert (row["message_count"], row["last_message"]["text"]) == (2, "before")
    assert [item["event_id"] for item in workspace.get(f"{talk.path}/queue")["data"]] == [removed["id"], edited["id"]]
    assert workspace.http.delete(f"{talk.path}/queue/{removed['id']}").status_code == 200
    assert workspace.http.patch(f"{talk.path}/queue/{edited['id']}", json={"content": "after"}).status_code == 200
    workspace.post(f"{talk.path}/resume", expect=202)
    assert RunView(workspace, edited["run_id"]).wait()["status"] == "completed"
    talk.run(says(text="later")).wait()
    assert talk.seen() == [["after", SYSTEM_NOTE.format("of the edited")], ["later"]]
    assert [event["processed_at"] is None for event in talk.log("system.message")] == [True, False]
    assert talk.log("system.message")[0]["id"] == gone["id"]


def test_with_a_tool_result_it_comes_behind_all_results(workspace: Workspace) -> None:
    talk = Talk(workspace)
    pays = {"tools": [{"name": "pay", "input": {"n": n}} for n in range(2)]}
    run = talk.run(says(pays, {"text": "Paid."}))
    run.until(lambda row: row["waiting_for"] is not None)
    first, second = [event["id"] for event in talk.log("agent.custom_tool_use")]

    def result(use: str, text: str) -> dict[str, Any]:
        return {
            "type": "user.custom_tool_result",
            "custom_tool_use_id": use,
            "content": [{"type": "text", "text": text}],
        }

    _, system = talk.send(result(second, "two"), told("Careful."))
    assert (system["run_id"], system["processed_at"]) == (run.id, None)
    talk.send(result(first, "one"))
    assert run.wait()["output"] == "Paid."
    assert talk.seen()[-1] == ["result: two", "result: one", SYSTEM_NOTE.format("Careful.")]


def test_the_same_message_twice_has_it_once(workspace: Workspace) -> None:
    talk = Talk(workspace)
    mine = {**says({"text": "Once."}), "client_event_id": "mine"}
    first = talk.send(mine, told("of Zanzibar"))
    RunView(workspace, first[0]["run_id"]).wait()
    assert [event["id"] for event in talk.send(mine, told("b"))] == [event["id"] for event in first]
    assert workspace.get("/v1/sessions", search="Zanzibar")["data"] == []
    assert len(workspace.get("/v1/sessions", search="Once")["data"]) == 1
    assert len(talk.log("system.message")) == 1


def test_a_page_neither_sends_nor_sees_it(workspace: Workspace) -> None:
    talk = Talk(workspace)
    run = talk.run(says({"text": "Hello."}), told("A secret."))
    run.wait()
    grants = {"grants": ["approvals", "tool_results"]}
    token = workspace.post(f"{talk.path}/client_tokens", grants, expect=201)["token"]
    with Workspace(workspace.service, token) as page:
        posted = {"events": [says({"text": "x"}), told("Obey.")]}
        assert page.post(f"{talk.path}/events", posted, expect=403)["code"] == "forbidden"
        thread = page.get(f"{talk.path}/threads")["data"][0]["id"]
        paths = ("/events", "/items", f"/threads/{thread}/events")
        for path in (*(f"{talk.path}{path}" for path in paths), f"/v1/runs/{run.id}/events"):
            assert "A secret." in workspace.http.get(path, params={"limit": 100}).text
            shown = page.http.get(path, params={"limit": 100}).text
            assert "A secret." not in shown
            assert "Hello." in shown
        stream = f"/v1/runs/{run.id}/events/stream"
        types = [frame.event for frame in page.stream(stream)]
        assert types == [frame.event for frame in workspace.stream(stream) if frame.event != "system.message"]
        assert {"user.message", "done"} <= set(types)
    assert len(talk.log("user.message")) == 1


def test_a_copy_has_it_where_it_has_its_message(workspace: Workspace) -> None:
    talk = Talk(workspace, ECHO)
    first, _ = talk.send(says(text="one"), told("first"))
    RunView(workspace, first["run_id"]).wait()
    workspace.post(f"{talk.path}/pause", expect=202)
    talk.send(says(text="two"), told("second"))
    copied = workspace.post(f"{talk.path}/fork", expect=201)["session"]["id"]
    document = workspace.get(f"{talk.path}/export")
    imported = workspace.post("/v1/sessions/import", document, expect=201)["id"]
    for session in (copied, imported):
        found = workspace.get(f"/v1/sessions/{session}/events", types=["user.message", "system.message"])["data"]
        assert [event["content"][0]["text"] for event in found] == ["one", "first"]
        assert transcript(workspace, session)[0].content == (Text(text="one"), Text(text=SYSTEM_NOTE.format("first")))
