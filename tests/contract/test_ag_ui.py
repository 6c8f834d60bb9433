"""Anthropic's AG-UI adapter on top of Perdure: what it makes of our sessions is an AG-UI stream without a flaw."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from ag_ui.core import RunAgentInput, Tool
from ag_ui_claude_managed_agents import (  # pyright: ignore[reportMissingTypeStubs]  # it has types, but does not say so
    BackendTool,
    ManagedAgentsAgent,
)
from ag_ui_validate.pytest_plugin import validate_agui
from anthropic import AsyncAnthropic

from tests.service import RunView, Workspace

PLACE: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=workspace.service.url, api_key=workspace.key, max_retries=0) as client:
        yield client


def user(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": f"m-{uuid4().hex}", "role": "user", "content": json.dumps({"script": steps})}


class Thread:
    """An AG-UI thread as a front end keeps it: what it sends, and what it was told."""

    def __init__(self, agent: ManagedAgentsAgent, *tools: Tool) -> None:
        self.agent = agent
        self.tools = list(tools)
        self.id = f"t-{uuid4().hex}"
        self.messages: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.context: list[dict[str, str]] = []
        agent.on_error = self._failed

    def _failed(self, error: BaseException, context: dict[str, Any]) -> None:
        self.errors.append(f"{context}: {error!r}")

    def request(self, *messages: dict[str, Any], resume: Any = None) -> RunAgentInput:
        body: dict[str, Any] = {
            "threadId": self.id,
            "runId": f"r-{uuid4().hex}",
            "messages": [*self.messages, *messages],
            "tools": [tool.model_dump(by_alias=True) for tool in self.tools],
            "context": self.context,
            "state": None,
            "forwardedProps": {},
            **({"resume": resume} if resume else {}),
        }
        return RunAgentInput.model_validate(body)

    async def run(self, *messages: dict[str, Any], resume: Any = None) -> list[dict[str, Any]]:
        """One run, validated: no error and no warning."""
        before = list(self.messages)
        self.messages += messages
        events: list[dict[str, Any]] = [
            json.loads(event.model_dump_json(by_alias=True, exclude_none=True))
            async for event in self.agent.run(self.request(resume=resume))
        ]
        self._keep(events)
        # The validator forgets a thread's earlier runs unless a snapshot tells them; the front end has them.
        known = [{"type": "MESSAGES_SNAPSHOT", "messages": before}] if before else []
        report = validate_agui([events[0], *known, *events[1:]])
        assert report.event_count == len(events) + len(known) > 2
        found = [d for d in report.diagnostics if d.severity != "info"]
        assert (found, report.internal_errors, self.errors) == ([], [], [])
        return events

    def _keep(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            match event:
                case {"type": "TEXT_MESSAGE_START", "messageId": id}:
                    written = [e["delta"] for e in of_type(events, "TEXT_MESSAGE_CONTENT") if e["messageId"] == id]
                    self.messages.append({"id": id, "role": "assistant", "content": "".join(written)})
                case {"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": arguments}:
                    (name,) = [e["toolCallName"] for e in of_type(events, "TOOL_CALL_START") if e["toolCallId"] == id]
                    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                    self.messages.append({"id": f"call-{id}", "role": "assistant", "toolCalls": [call]})
                case {"type": "TOOL_CALL_RESULT", "toolCallId": id, "content": content, "messageId": message_id}:
                    self.messages.append({"id": message_id, "role": "tool", "toolCallId": id, "content": content})
                case _:
                    pass


def of_type(events: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] in types]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in of_type(events, "TEXT_MESSAGE_CONTENT"))


def adapter(workspace: Workspace, client: AsyncAnthropic, *backend: BackendTool, **agent: Any) -> ManagedAgentsAgent:
    made = workspace.agent(**agent)["id"]
    return ManagedAgentsAgent(
        managed_agent_id=made, environment_id="env_default", client=client, backend_tools=list(backend), turn_timeout_s=30
    )


async def test_text_streams_reasoning_shows_and_tools_have_results(workspace: Workspace, client: AsyncAnthropic) -> None:
    thread = Thread(adapter(workspace, client, tools=["write"]))
    write = {"name": "write", "input": {"file_path": "a.txt", "content": "ü"}}

    events = await thread.run(
        user(
            {"thinking": "Let me write. ", "text": "I write.", "tools": [write]}, {"text": "Done:", "words": 60, "delay_ms": 2}
        )
    )

    assert (events[0]["type"], events[-1]["type"]) == ("RUN_STARTED", "RUN_FINISHED")
    assert len(of_type(events, "TEXT_MESSAGE_CONTENT")) > 5
    assert text(events).startswith("I write.Done: lorem")
    assert len(of_type(events, "REASONING_START", "REASONING_END")) == 2
    (call,) = of_type(events, "TOOL_CALL_START")
    (arguments,) = of_type(events, "TOOL_CALL_ARGS")
    (result,) = of_type(events, "TOOL_CALL_RESULT")
    assert (call["toolCallName"], json.loads(arguments["delta"])) == ("write", write["input"])
    assert result["toolCallId"] == call["toolCallId"]


async def test_a_thread_goes_on_in_its_session(workspace: Workspace, client: AsyncAnthropic) -> None:
    thread = Thread(adapter(workspace, client))
    assert text(await thread.run(user({"text": "One."}))) == "One."
    assert text(await thread.run(user({"text": "Two."}))) == "Two."
    assert text(await thread.run(user({"text": "Three."}))) == "Three."

    (session,) = workspace.get("/v1/sessions")["data"]
    assert (session["message_count"], session["title"]) == (6, f"AG-UI thread {thread.id}")


async def test_what_the_page_shows_is_told_to_the_model(workspace: Workspace, client: AsyncAnthropic) -> None:
    thread = Thread(adapter(workspace, client))
    thread.context = [{"description": "The open page", "value": "Invoice 17"}]
    assert text(await thread.run(user({"text": "One."}))) == "One."
    assert text(await thread.run(user({"text": "Two."}))) == "Two."
    thread.context = [{"description": "The open page", "value": "Invoice 18"}]
    assert text(await thread.run(user({"text": "Three."}))) == "Three."

    (session,) = workspace.get("/v1/sessions")["data"]
    items = workspace.get(f"/v1/sessions/{session['id']}/items")["data"]
    assert [item["role"] for item in items] == ["user", "system", "agent", "user", "agent", "user", "system", "agent"]
    told = [item["content"][0]["text"] for item in items if item["role"] == "system"]
    assert ["Invoice 17" in told[0], "Invoice 18" in told[1]] == [True, True]


async def test_a_tool_result_brings_what_the_page_shows_now(workspace: Workspace, client: AsyncAnthropic) -> None:
    confetti = Tool(name="confetti", description="Throws confetti.", parameters={"type": "object", "properties": {}})
    thread = Thread(adapter(workspace, client), confetti)
    first = await thread.run(user({"tools": [{"name": "confetti", "input": {}}]}, {"text": "Thrown."}))
    (call,) = of_type(first, "TOOL_CALL_START")
    thread.context = [{"description": "The open page", "value": "A party"}]
    done = {"id": "r1", "role": "tool", "toolCallId": call["toolCallId"], "content": "It rains paper."}
    assert text(await thread.run(done)) == "Thrown."
    (session,) = workspace.get("/v1/sessions")["data"]
    (event,) = workspace.get(f"/v1/sessions/{session['id']}/events", types=["system.message"])["data"]
    assert ("A party" in event["content"][0]["text"], event["processed_at"] is not None) == (True, True)


async def test_the_backend_runs_a_tool(workspace: Workspace, client: AsyncAnthropic) -> None:
    asked: list[Any] = []

    async def weather(given: Any) -> str:
        asked.append(given)
        return "30 degrees"

    tool = BackendTool(name="weather", description="The weather in a city.", parameters=PLACE, handler=weather)
    thread = Thread(adapter(workspace, client, tool, tools=["write"]))
    call = {"name": "weather", "input": {"city": "Rome"}}

    events = await thread.run(user({"tools": [call]}, {"text": "Hot."}))

    assert asked == [{"city": "Rome"}]
    assert [event["content"] for event in of_type(events, "TOOL_CALL_RESULT")] == ["30 degrees"]
    assert text(events) == "Hot."


async def test_the_page_runs_a_tool_and_brings_another_one_later(workspace: Workspace, client: AsyncAnthropic) -> None:
    confetti = Tool(name="throw confetti", description="Throws confetti.", parameters={"type": "object", "properties": {}})
    thread = Thread(adapter(workspace, client, tools=["write"]), confetti)

    first = await thread.run(user({"tools": [{"name": "throw_confetti", "input": {}}]}, {"text": "Thrown."}))
    (call,) = of_type(first, "TOOL_CALL_START")
    assert (call["toolCallName"], first[-1]["type"], text(first)) == ("throw confetti", "RUN_FINISHED", "")
    done = {"id": "r1", "role": "tool", "toolCallId": call["toolCallId"], "content": "It rains paper."}
    assert text(await thread.run(done)) == "Thrown."

    thread.tools.append(Tool(name="map", description="Shows a map.", parameters=PLACE))
    second = await thread.run(user({"tools": [{"name": "map", "input": {"city": "Rome"}}]}, {"text": "Shown."}))
    (call,) = of_type(second, "TOOL_CALL_START")
    assert call["toolCallName"] == "map"
    seen = {"id": "r2", "role": "tool", "toolCallId": call["toolCallId"], "content": "Seen."}
    assert text(await thread.run(seen)) == "Shown."


async def test_a_person_is_asked_before_a_tool_runs(workspace: Workspace, client: AsyncAnthropic) -> None:
    asks = {"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}
    thread = Thread(adapter(workspace, client, tools=[asks]))
    write = {"name": "write", "input": {"file_path": "a.txt", "content": "x"}}

    asked = await thread.run(user({"tools": [write]}, {"text": "Written."}))
    (interrupt,) = asked[-1]["outcome"]["interrupts"]
    assert interrupt["metadata"]["toolName"] == "write"

    answer = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "allow"}]
    done = await thread.run(resume=answer)
    assert len(of_type(done, "TOOL_CALL_RESULT")) == 1
    assert text(done) == "Written."


async def test_a_failed_turn_is_an_error_and_a_retried_one_is_none(workspace: Workspace, client: AsyncAnthropic) -> None:
    thread = Thread(adapter(workspace, client))
    retried = await thread.run(user({"text": "At last:", "words": 20, "truncate_attempts": 1}))
    assert len(of_type(retried, "TEXT_MESSAGE_START")) == 2, "the half that was cut off, and the whole"
    assert text(retried).endswith(" 20")
    failed = await thread.run(user({"fail": {"code": "rejected", "message": "no such model"}}))
    assert failed[-1]["type"] == "RUN_ERROR"
    assert "no such model" in failed[-1]["message"]


async def test_a_page_that_leaves_interrupts_its_turn_and_goes_on_later(workspace: Workspace, client: AsyncAnthropic) -> None:
    thread = Thread(adapter(workspace, client))
    long = user({"text": "Slowly:", "words": 2_000, "delay_ms": 20})

    async def watch() -> None:
        async for event in thread.agent.run(thread.request(long)):
            if event.type == "TEXT_MESSAGE_CONTENT":
                reading.set()

    reading = asyncio.Event()
    page = asyncio.create_task(watch())
    await asyncio.wait_for(reading.wait(), 20)
    page.cancel()
    with pytest.raises(asyncio.CancelledError):
        await page

    (session,) = workspace.get("/v1/sessions")["data"]
    (run,) = workspace.get("/v1/runs", session_id=session["id"])["data"]
    ended = await asyncio.to_thread(RunView(workspace, run["id"]).wait)  # the adapter goes on in this loop
    assert ended["status"] == "cancelled"
    (written,) = workspace.get(f"/v1/sessions/{session['id']}/events", types=["agent.message"])["data"]
    assert written["interrupted"] is True
    assert written["content"][0]["text"].startswith("Slowly:")

    thread.messages.append(long)
    seen = text(await thread.run(user({"text": "Again."})))
    assert (seen[:7], seen[-6:]) == ("Slowly:", "Again."), "first what the page missed, then the answer"
    (session,) = workspace.get("/v1/sessions")["data"]
    assert session["message_count"] == 4, "it goes on in the same session"
