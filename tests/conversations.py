"""A conversation in which nearly everything has happened, for tests of what is made of logs."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from domain.completions import Message, Thinking, ToolResult, ToolUse
from domain.events import Event
from domain.transcript import fold
from storage.journal import read
from storage.tables import EventRow
from tests.files import upload
from tests.service import RunView, Workspace

TOOLS: list[Any] = [
    "read",
    "ask_user",
    "plan",
    "publish_artifact",
    {"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}},
    {"type": "custom", "name": "look_up", "description": "Looks up.", "input_schema": {"type": "object"}},
]
FENCED = "```python\nprint('never closed')\n<!-- nor this\n<details>"


@dataclass
class Conversation:
    id: str
    agent_id: str
    file_id: str
    messages: list[dict[str, Any]]
    """The answers to the messages that were sent."""

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}"


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": list(steps)})


def call(name: str, /, **input: Any) -> dict[str, Any]:
    return {"name": name, "input": input}


def say(workspace: Workspace, session_id: str, *steps: dict[str, Any], text: str | None = None, **more: Any) -> RunView:
    sent = workspace.post(f"/v1/sessions/{session_id}/messages", {"content": text or script(*steps), **more}, expect=201)
    return RunView(workspace, sent["run"]["id"])


def log(workspace: Workspace, session_id: str) -> list[dict[str, Any]]:
    return workspace.get(f"/v1/sessions/{session_id}/events", limit=1000)["data"]


def events(workspace: Workspace, session_id: str, *, thread: str | None = None) -> list[Event]:
    """As they are kept, with what is never sent: of the primary thread."""

    async def all_of_it() -> list[Event]:
        async with workspace.service.parts.database.read() as connection:
            return await read(connection, session_id, limit=100_000, primary=())

    return workspace.service.call(all_of_it())


def check_transcript(messages: Sequence[Message]) -> None:
    """What every vendor asks of a request."""
    assert messages[0].role == messages[-1].role == "user"
    for before, after in pairwise(messages):
        assert before.role != after.role
    for at, message in enumerate(messages):
        uses = {block.id for block in message.content if isinstance(block, ToolUse)}
        results = [block.tool_use_id for block in message.content if isinstance(block, ToolResult)]
        assert message.content
        if message.role == "assistant":
            assert not isinstance(message.content[-1], Thinking), "an answer must not end in reasoning"
            answered = [block.tool_use_id for block in messages[at + 1].content if isinstance(block, ToolResult)]
            assert uses == set(answered)
            assert len(answered) == len(uses)
        else:
            assert not uses
            before = messages[at - 1].content if at else ()
            assert set(results) <= {block.id for block in before if isinstance(block, ToolUse)}


def transcript(workspace: Workspace, session_id: str) -> tuple[Message, ...]:
    return fold(events(workspace, session_id))


def sign_thoughts(workspace: Workspace, session_id: str) -> None:
    """As a vendor does that sends signatures over its reasoning, which the scripted model does not."""

    async def write() -> None:
        mine = (col(EventRow.session_id) == session_id, col(EventRow.type) == "agent.thinking")
        async with workspace.service.parts.database.write() as transaction:
            await transaction.connection.execute(update(EventRow).where(*mine).values(private={"signature": "c2lnbmVk"}))

    workspace.service.call(write())


def approvals(workspace: Workspace, run: RunView, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 15
    while True:
        found = workspace.get("/v1/approvals", status="pending", run_id=run.id, order="asc")["data"]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, (found, run.row)
        time.sleep(0.02)


def hold(workspace: Workspace) -> Conversation:
    """Hold it: approvals of all kinds, a question, a tool of the caller's, a file, a sub-agent, a queue, an interruption."""
    helper = workspace.agent(name="helper", description="Helps.", tools=["read"])["id"]
    team = {"type": "coordinator", "agents": [helper]}
    agent = workspace.agent(name="lead", tools=TOOLS, multiagent=team)["id"]
    file_id = upload(workspace, b"given", "given.txt", "text/plain")["id"]
    resources = [{"type": "file", "file_id": file_id, "mount_path": "given.txt"}]
    made = workspace.post("/v1/sessions", {"agent": agent, "title": "A *rich* one", "resources": resources})
    id = made["id"]
    sent: list[dict[str, Any]] = []

    def post(*steps: dict[str, Any], **more: Any) -> RunView:
        sent.append(workspace.post(f"/v1/sessions/{id}/messages", {"content": script(*steps), **more}, expect=201))
        return RunView(workspace, sent[-1]["run"]["id"])

    writes = [call("write", file_path=f"{name}.txt", content=FENCED) for name in "ab"]
    helps = script({"thinking": "A small task.", "tools": [call("read", file_path="a.txt")]}, {"text": "It says little."})
    first = post(
        {"thinking": "What is there?", "text": "Let me see.", "tools": [call("read", file_path="given.txt"), *writes]},
        {"thinking": "Now ask.", "tools": [call("ask_user", question="Which?", choices=["red", "blue"]), call("look_up", q=1)]},
        {"tools": [call("plan", items=[{"content": "look", "status": "completed"}])]},
        {"tools": [call("publish_artifact", path="a.txt"), call("read", file_path="nowhere")]},
        {"text": "I delegate.", "tools": [call("delegate", agent="helper", task=helps, title="Look")]},
        {"text": f"Here: {FENCED}"},
    )
    approved, denied = approvals(workspace, first, 2)
    workspace.post(f"/v1/approvals/{approved['id']}/decision", {"decision": "approve"})
    queued = post({"text": "The second answer."}, client_event_id="mine-1")
    withdrawn = post({"text": "Never said."})
    withdrawn.command("cancel")
    workspace.post(f"/v1/approvals/{denied['id']}/decision", {"decision": "deny", "reason": "Not b."})
    first.until(lambda row: row["waiting_for"] == "input")
    (custom,) = [event for event in first.events() if event["type"] == "agent.custom_tool_use"]
    result = {
        "type": "user.custom_tool_result",
        "custom_tool_use_id": custom["id"],
        "content": [{"type": "text", "text": "42"}],
    }
    workspace.post(f"/v1/sessions/{id}/events", {"events": [result]})
    first.command("input", {"content": "red"})
    assert first.wait()["status"] == queued.wait()["status"] == "completed"
    interrupted = post({"thinking": "Long.", "text": "It begins", "words": 3000, "delay_ms": 5}, {"text": "And ends."})
    interrupted.until(lambda row: row["status"] == "running")
    time.sleep(0.3)
    interrupted.command("pause", {"mode": "now"})
    interrupted.until(lambda row: row["status"] == "paused")
    interrupted.command("resume")
    assert interrupted.wait()["status"] == "completed"
    assert post({"fail": {"code": "auth"}}).wait()["status"] == "failed"
    third = post({"tools": [call("write", file_path="c.txt", content="c")]}, {"text": "Remembered."})
    (asked,) = approvals(workspace, third, 1)
    workspace.post(f"/v1/approvals/{asked['id']}/decision", {"decision": "approve", "remember": True})
    assert third.wait()["status"] == "completed"
    workspace.post(f"/v1/sessions/{id}", {"metadata": {"colour": "red"}})
    sign_thoughts(workspace, id)
    return Conversation(id, agent, file_id, sent)
