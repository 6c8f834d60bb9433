"""The official `anthropic` package against the service, with nothing but `base_url` and a key."""

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import beta
from anthropic.types.beta import sessions as types
from pydantic import BaseModel

from tests.service import Workspace


@pytest.fixture
def sdk(workspace: Workspace) -> Iterator[Anthropic]:
    with Anthropic(base_url=workspace.service.url, api_key=workspace.key, max_retries=0) as client:
        yield client


def sound(value: Any) -> Any:
    """The value, decoded into the class of its type with all that the class requires: the SDK itself checks neither."""
    assert isinstance(value, BaseModel)
    wanted: Any = type(value).model_fields["type"].annotation if "type" in type(value).model_fields else None
    if wanted is not None:
        allowed = {word for part in (wanted, *get_args(wanted)) for word in get_args(part)}  # also where it is optional
        assert getattr(value, "type") in allowed, value  # noqa: B009  # of any of its classes
    type(value).model_validate_json(value.model_dump_json(exclude_unset=True))
    return value


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


def message(text: str) -> Any:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def new_session(sdk: Anthropic, **members: Any) -> Any:
    toolset: Any = {"type": "agent_toolset_20260401"}
    agent = sdk.beta.agents.create(name="helper", model="demo:script", tools=[toolset])
    return sound(sdk.beta.sessions.create(agent=agent.id, environment_id="env_default", **members))


def until_idle(stream: Any) -> list[Any]:
    """Events up to the one that says that the session is idle, each decoded soundly."""
    events: list[Any] = []
    for event in stream:
        events.append(sound(event))
        if event.type == "session.status_idle":
            return events
    raise AssertionError("the stream ended")


def test_agents(sdk: Anthropic) -> None:
    agents = sdk.beta.agents
    toolset: Any = {"type": "agent_toolset_20260401", "configs": [{"name": "write", "type": "write", "enabled": False}]}
    agent = sound(agents.create(name="helper", model="demo:script", system="one", tools=[toolset], metadata={"k": "v"}))

    assert isinstance(agent, beta.BetaManagedAgentsAgent)
    assert (agent.version, agent.model.id, agent.tools[0].type) == (1, "demo:script", "agent_toolset_20260401")
    echoed: Any = agent.tools[0].model_dump(mode="json", exclude_none=True)
    second = sound(agents.update(agent.id, version=1, system="two", tools=[echoed], metadata={"k": None}))
    assert (second.version, second.system, second.metadata) == (2, "two", {})
    third = sound(agents.update(agent.id, system=None, tools=None, mcp_servers=[], skills=None, multiagent=None))
    assert (third.version, third.system, third.tools) == (3, None, [])
    assert sound(agents.retrieve(agent.id)).version == 3
    assert sound(agents.retrieve(agent.id, version=1)).system == "one"
    assert [sound(v).version for v in agents.versions.list(agent.id, limit=2)] == [3, 2, 1]
    others = [agents.create(name=f"other-{n}", model={"id": "demo:echo"}).id for n in range(4)]
    assert [sound(found).id for found in agents.list(limit=2)] == [*others[::-1], agent.id]
    assert [found.id for found in agents.list(created_at_lte=agent.created_at)] == [agent.id]
    assert [found.id for found in agents.list(created_at_gte=agent.created_at)][-1] == agent.id
    assert sound(agents.archive(agent.id)).archived_at is not None
    assert agent.id not in [found.id for found in agents.list()]
    assert agent.id in [found.id for found in agents.list(include_archived=True)]


def test_sessions(sdk: Anthropic) -> None:
    sessions = sdk.beta.sessions
    session = new_session(sdk, title="First", metadata={"k": "v"})
    assert isinstance(session, beta.BetaManagedAgentsSession)
    assert (session.status, session.environment_id, session.agent.version) == ("idle", "env_default", 1)

    renamed = sound(sessions.update(session.id, title="Second", metadata={"k": None, "l": "w"}))
    assert (renamed.title, renamed.metadata) == ("Second", {"l": "w"})
    assert sound(sessions.retrieve(session.id)).title == "Second"
    more = [
        sessions.create(agent={"type": "agent", "id": session.agent.id, "version": 1}, environment_id="e").id for _ in range(4)
    ]
    assert [sound(found).id for found in sessions.list(limit=2)] == [*more[::-1], session.id]
    assert [found.id for found in sessions.list(limit=2, order="asc")] == [session.id, *more]
    assert len(list(sessions.list(agent_id=session.agent.id, agent_version=1, statuses=["idle", "running"]))) == 5
    assert list(sessions.list(statuses=["terminated"])) == []
    assert [found.id for found in sessions.list(created_at_lte=session.created_at)] == [session.id]
    assert session.id not in [found.id for found in sessions.list(created_at_gt=session.created_at)]
    assert sound(sessions.archive(session.id)).archived_at is not None
    assert session.id not in [found.id for found in sessions.list()]
    assert session.id in [found.id for found in sessions.list(include_archived=True)]
    assert sound(sessions.delete(more[0])).type == "session_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sessions.retrieve(more[0])


def test_a_turn_streams_and_decodes(sdk: Anthropic) -> None:
    session = new_session(sdk)
    steps = (
        {"thinking": "I write it down.", "tools": [{"name": "write", "input": {"file_path": "a.txt", "content": "x"}}]},
        {"text": "Written, ", "words": 60, "delay_ms": 2},
    )
    with sdk.beta.sessions.events.stream(session.id, event_deltas=["agent.message", "agent.thinking"]) as stream:
        sent = sound(sdk.beta.sessions.events.send(session.id, events=[message(script(*steps))]))
        events = until_idle(stream)

    assert [sound(event).type for event in sent.data] == ["user.message"]
    durable = [event for event in events if event.type not in ("event_start", "event_delta")]
    assert [event.type for event in durable] == [
        "user.message",
        "session.status_running",
        "span.model_request_start",
        "agent.thinking",
        "agent.tool_use",
        "span.model_request_end",
        "agent.tool_result",
        "span.model_request_start",
        "agent.message",
        "span.model_request_end",
        "session.status_idle",
    ]
    assert isinstance(durable[3], types.BetaManagedAgentsAgentThinkingEvent)
    assert isinstance(durable[4], types.BetaManagedAgentsAgentToolUseEvent)
    assert durable[6].tool_use_id == durable[4].id
    assert durable[10].stop_reason.type == "end_turn"
    assert durable[9].model_usage.output_tokens > 0
    text = durable[8]
    pieces = [event for event in events if event.type == "event_delta"]
    assert {event.event_id for event in pieces} == {text.id}
    assert len(pieces) > 3
    assert "".join(event.delta.content.text for event in pieces) == text.content[0].text
    assert [event.event.type for event in events if event.type == "event_start"] == ["agent.thinking", "agent.message"]

    listed = [sound(event) for event in sdk.beta.sessions.events.list(session.id, limit=3)]
    assert [event.id for event in listed] == [event.id for event in durable]
    newest = [event.id for event in sdk.beta.sessions.events.list(session.id, limit=3, order="desc")]
    assert newest == [event.id for event in durable][::-1]
    only = sdk.beta.sessions.events.list(session.id, types=["agent.message", "agent.tool_use"])
    assert [event.type for event in only] == ["agent.tool_use", "agent.message"]
    after = sound(sdk.beta.sessions.retrieve(session.id))
    assert (after.status, after.usage.output_tokens) == (
        "idle",
        sum(e.model_usage.output_tokens for e in (durable[5], durable[9])),
    )


def test_a_stream_is_taken_up_where_it_broke_off(sdk: Anthropic, workspace: Workspace) -> None:
    session = new_session(sdk)
    sdk.beta.sessions.events.send(session.id, events=[message(script({"text": "Go on: ", "words": 40, "delay_ms": 5}))])
    path = f"/v1/sessions/{session.id}/events/stream"
    headers = {"Last-Event-ID": "0", "anthropic-beta": "managed-agents-2026-04-01"}
    # The package shows no ids of frames: they are read off the wire.
    frames = workspace.http.build_request("GET", path, params={"event_deltas[]": "agent.message"}, headers=headers)
    cursor, had = "0", ""
    response = workspace.http.send(frames, stream=True)
    for line in response.iter_lines():
        if line.startswith("id: "):
            cursor = line.removeprefix("id: ")
        elif line.startswith("data: ") and '"event_delta"' in line:
            had += json.loads(line.removeprefix("data: "))["delta"]["content"]["text"]
            if len(had) > 30:
                break
    response.close()

    events = sdk.beta.sessions.events
    with events.stream(session.id, event_deltas=["agent.message"], extra_headers={"Last-Event-ID": cursor}) as stream:
        rest = until_idle(stream)
    with events.stream(session.id, extra_headers={"Last-Event-ID": "0"}) as stream:
        whole = until_idle(stream)

    final = next(event for event in rest if event.type == "agent.message")
    more = "".join(event.delta.content.text for event in rest if event.type == "event_delta")
    assert had + more == final.content[0].text
    assert [event.id for event in whole] == [event.id for event in events.list(session.id)]


def test_a_failed_turn_decodes(sdk: Anthropic) -> None:
    session = new_session(sdk)
    with sdk.beta.sessions.events.stream(session.id) as stream:
        sdk.beta.sessions.events.send(session.id, events=[message(script({"fail": {"code": "rejected", "message": "no"}}))])
        events = until_idle(stream)

    error = next(event for event in events if event.type == "session.error")
    assert isinstance(error, types.BetaManagedAgentsSessionErrorEvent)
    assert "no" in error.error.message
    (thread,) = sdk.beta.sessions.threads.list(session.id)
    (*_, idle) = sdk.beta.sessions.threads.events.list(thread.id, session_id=session.id)
    assert isinstance(idle, types.BetaManagedAgentsSessionStatusIdleEvent)
    assert events[-1].stop_reason.type == idle.stop_reason.type == "retries_exhausted"


def test_errors_become_the_exceptions_of_the_package(sdk: Anthropic, workspace: Workspace) -> None:
    agents, sessions = sdk.beta.agents, sdk.beta.sessions
    agent = agents.create(name="a", model="demo:echo")
    agents.update(agent.id, system="two")
    bad: Any = {"type": "user.define_outcome"}
    session = new_session(sdk)
    refused: list[tuple[type[anthropic.APIStatusError], Literal[400, 401, 403, 404, 409, 413, 422], Any]] = [
        (anthropic.BadRequestError, 400, lambda: agents.list(page="x")),
        (anthropic.NotFoundError, 404, lambda: agents.retrieve("agent_x")),
        (anthropic.NotFoundError, 404, lambda: sessions.events.send("sesn_x", events=[message("x")])),
        (anthropic.NotFoundError, 404, lambda: sessions.events.stream("sesn_x")),
        (anthropic.ConflictError, 409, lambda: agents.update(agent.id, version=1, system="three")),
        (anthropic.UnprocessableEntityError, 422, lambda: agents.create(name="a", model="nowhere:x")),
        (anthropic.UnprocessableEntityError, 422, lambda: sessions.events.send(session.id, events=[bad])),
        (anthropic.AuthenticationError, 401, lambda: sdk.with_options(api_key="wrong").beta.agents.list()),
    ]
    with workspace.service.workspace(("agents:read",)) as reader:
        limited = sdk.with_options(api_key=reader.key)
        refused.append((anthropic.PermissionDeniedError, 403, lambda: limited.beta.agents.create(name="a", model="demo:echo")))
        for kind, status, call in refused:
            with pytest.raises(kind) as caught:
                call()
            assert caught.value.status_code == status
            assert caught.value.request_id
            body: Any = caught.value.body
            assert body["error"]["message"]


def test_a_turn_is_interrupted_and_redirected(sdk: Anthropic) -> None:
    session = new_session(sdk)
    events = sdk.beta.sessions.events
    interrupt: Any = {"type": "user.interrupt"}
    slow = {"text": "word " * 4000, "delay_ms": 50}

    with events.stream(session.id, event_deltas=["agent.message"]) as stream:
        events.send(session.id, events=[message(script(slow))])
        next(event for event in stream if event.type == "event_delta")
        sent = [
            sound(event) for event in sound(events.send(session.id, events=[interrupt, message(script({"text": "So."}))])).data
        ]
        first = until_idle(stream)
        second = until_idle(stream)

    assert [event.type for event in sent] == ["user.interrupt", "user.message"]
    assert sent[0].processed_at is None
    assert {event.type for event in first} >= {"user.interrupt", "agent.message"}
    assert [event.content[0].text for event in second if event.type == "agent.message"] == ["So."]
    listed = {event.id: sound(event) for event in events.list(session.id)}
    assert all(listed[event.id].processed_at is not None for event in sent)

    (idle,) = sound(events.send(session.id, events=[interrupt])).data
    assert (sound(idle).type, idle.processed_at is not None) == ("user.interrupt", True)
    assert sdk.beta.sessions.retrieve(session.id).status == "idle"


def test_an_idempotency_key_and_retries_of_the_package(sdk: Anthropic) -> None:
    headers = {"Idempotency-Key": "mine"}

    first = sdk.beta.agents.create(name="a", model="demo:echo", extra_headers=headers)
    again = sdk.beta.agents.create(name="a", model="demo:echo", extra_headers=headers)

    assert again.id == first.id
    assert len(list(sdk.beta.agents.list())) == 1


def blocked(stream: Any) -> list[Any]:
    """The tool uses that the session waits with, in their order."""
    idle = until_idle(stream)[-1]
    assert idle.stop_reason.type == "requires_action"
    return idle.stop_reason.event_ids


def test_a_tool_is_confirmed_or_denied(sdk: Anthropic) -> None:
    toolset: Any = {
        "type": "agent_toolset_20260401",
        "default_config": {"permission_policy": {"type": "always_ask"}},
        "configs": [{"name": "glob", "permission_policy": {"type": "always_allow"}}],
    }
    agent = sound(sdk.beta.agents.create(name="careful", model="demo:script", tools=[toolset]))
    assert agent.tools[0].default_config.permission_policy.type == "always_ask"
    session = sdk.beta.sessions.create(agent=agent.id, environment_id="env_default")
    events = sdk.beta.sessions.events
    write = [{"name": "write", "input": {"file_path": name, "content": "x"}} for name in "ab"]
    tools = [*write, {"name": "glob", "input": {"pattern": "*"}}]

    with events.stream(session.id) as stream:
        events.send(session.id, events=[message(script({"tools": tools}, {"text": "Done."}))])
        first, second = blocked(stream)
        events.send(session.id, events=[{"type": "user.tool_confirmation", "tool_use_id": first, "result": "allow"}])
        assert blocked(stream) == [second]
        deny: Any = {"type": "user.tool_confirmation", "tool_use_id": second, "result": "deny", "deny_message": "No."}
        (sent,) = sound(events.send(session.id, events=[deny])).data
        assert (sound(sent).type, sent.deny_message) == ("user.tool_confirmation", "No.")
        ended = until_idle(stream)

    assert ended[-1].stop_reason.type == "end_turn"
    uses = [sound(e) for e in events.list(session.id) if e.type == "agent.tool_use"]
    assert [use.evaluated_permission for use in uses] == ["ask", "ask", "allow"]
    results = {e.tool_use_id: e.is_error for e in events.list(session.id) if e.type == "agent.tool_result"}
    assert (results[first], results[second]) == (False, True)


def test_the_caller_runs_a_custom_tool(sdk: Anthropic) -> None:
    schema: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: Any = {"type": "custom", "name": "weather", "description": "The weather in a city.", "input_schema": schema}
    agent = sound(sdk.beta.agents.create(name="reporter", model="demo:script", tools=[tool]))
    session = sdk.beta.sessions.create(agent=agent.id, environment_id="env_default")
    events = sdk.beta.sessions.events

    with events.stream(session.id) as stream:
        asks = {"tools": [{"name": "weather", "input": {"city": "Rome"}}]}
        events.send(session.id, events=[message(script(asks, {"text": "Sunny."}))])
        (use,) = blocked(stream)
        content: Any = [{"type": "text", "text": "30 degrees"}]
        result: Any = {"type": "user.custom_tool_result", "custom_tool_use_id": use, "content": content}
        (sent,) = sound(events.send(session.id, events=[result])).data
        assert sound(sent).type == "user.custom_tool_result"
        ended = until_idle(stream)

    assert [event.content[0].text for event in ended if event.type == "agent.message"] == ["Sunny."]
    (asked,) = [sound(e) for e in events.list(session.id) if e.type == "agent.custom_tool_use"]
    assert (asked.id, asked.name, asked.input) == (use, "weather", {"city": "Rome"})


def test_context_of_the_operator_goes_with_a_message(sdk: Anthropic) -> None:
    agent = sdk.beta.agents.create(name="echo", model="demo:echo")
    session = sdk.beta.sessions.create(agent=agent.id, environment_id="env_default")
    events = sdk.beta.sessions.events
    system: Any = {"type": "system.message", "content": [{"type": "text", "text": "It rains."}]}

    with events.stream(session.id) as stream:
        sent = [sound(event) for event in sound(events.send(session.id, events=[message("hi"), system])).data]
        ended = until_idle(stream)

    assert [(event.type, event.processed_at) for event in sent] == [("user.message", None), ("system.message", None)]
    assert sent[1].id in [sound(event).id for event in ended if event.type == "system.message"]
    (listed,) = [sound(event) for event in events.list(session.id) if event.type == "system.message"]
    assert (listed.content[0].text, listed.processed_at is not None) == ("It rains.", True)
    with pytest.raises(anthropic.UnprocessableEntityError, match="right behind"):
        events.send(session.id, events=[system])
