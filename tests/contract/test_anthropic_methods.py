"""Every method that the `anthropic` package has for agents, sessions and files: shared and called here, or named as not shared.

A new release of the package that brings another one fails here until somebody has decided.
"""

import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool
from anthropic.types.beta import sessions as types

from domain.sdk_events import SDK_TYPES
from tests.contract.test_anthropic_sdk import message, new_session, script, sound, until_idle
from tests.service import Workspace

AREAS = ("agents", "sessions", "files", "models")
NOT_SHARED = {
    "sessions.resources.delete": "what was given to a session is part of its record; its directory goes with it",
    "sessions.resources.update": "rotates the token of a repository: there are files only",
    "sessions.threads.archive": "a sub-agent's thread ends with its run",
    "models.retrieve": "`GET /v1/models` says all that there is to say",
}
NOT_SHARED_EVENTS = {
    "user.define_outcome": "outcomes are not graded",
    "user.tool_result": "of self-hosted environments, which there are not: custom tools are what callers run",
}


@pytest.fixture
def sdk(workspace: Workspace) -> Iterator[Anthropic]:
    with Anthropic(base_url=workspace.service.url, api_key=workspace.key, max_retries=0) as client:
        yield client


def methods(resource: object, path: str = "") -> Iterator[str]:
    """All of a resource and of those below it."""
    for name, member in vars(type(resource)).items():
        if name.startswith(("_", "with_")):
            continue
        if inspect.isfunction(member):
            yield f"{path}{name}"
        else:
            yield from methods(getattr(resource, name), f"{path}{name}.")


def file(sdk: Anthropic) -> Any:
    return sdk.beta.files.upload(file=("a.txt", io.BytesIO(b"given"), "text/plain"))


def talked(sdk: Anthropic, workspace: Workspace) -> Any:
    """A session in which a turn has ended."""
    session = new_session(sdk)
    sent = workspace.post(f"/v1/sessions/{session.id}/messages", {"content": script({"text": "Hello."})})
    workspace.get(f"/v1/runs/{sent['run']['id']}/wait")
    return session


def given(sdk: Anthropic) -> Any:
    """A session that was given a file."""
    return new_session(sdk, resources=[{"type": "file", "file_id": file(sdk).id, "mount_path": "/workspace/a.txt"}])


def stream_thread(sdk: Anthropic, workspace: Workspace) -> Any:
    session = new_session(sdk)
    (thread,) = sdk.beta.sessions.threads.list(session.id)
    with sdk.beta.sessions.threads.events.stream(thread.id, session_id=session.id) as stream:
        sdk.beta.sessions.events.send(session.id, events=[message(script({"text": "Hello."}))])
        return until_idle(stream)[-1]


def stream_session(sdk: Anthropic, workspace: Workspace) -> Any:
    session = new_session(sdk)
    with sdk.beta.sessions.events.stream(session.id, event_deltas=["agent.message"]) as stream:
        sdk.beta.sessions.events.send(session.id, events=[message(script({"text": "Hello."}))])
        return until_idle(stream)[-1]


def primary(sdk: Anthropic, workspace: Workspace) -> dict[str, str]:
    session = talked(sdk, workspace)
    (thread,) = sdk.beta.sessions.threads.list(session.id, limit=1)
    return {"thread_id": thread.id, "session_id": session.id}


def retrieve_resource(sdk: Anthropic, workspace: Workspace) -> Any:
    session = given(sdk)
    found = sdk.beta.sessions.resources.retrieve(session.resources[0].id, session_id=session.id)
    assert found == session.resources[0]
    return found


def add_resource(sdk: Anthropic, workspace: Workspace) -> Any:
    session = given(sdk)
    added = sdk.beta.sessions.resources.add(session.id, type="file", file_id=file(sdk).id, mount_path="/workspace/b.txt")
    assert [found.mount_path for found in sdk.beta.sessions.resources.list(session.id)] == [
        "/workspace/a.txt",
        added.mount_path,
    ]
    return added


def with_overrides(sdk: Anthropic, workspace: Workspace) -> Any:
    agent = sdk.beta.agents.create(
        name="a", model="demo:script", system="Of the agent.", tools=[{"type": "agent_toolset_20260401"}]
    )
    overrides: Any = {"type": "agent_with_overrides", "id": agent.id, "system": "Of the session.", "tools": []}
    first: Any = [message(script({"text": "One."})), message(script({"text": "Two."}))]
    session = sdk.beta.sessions.create(agent=overrides, environment_id="env_default", initial_events=first, title="T")
    assert (session.agent.name, session.agent.system, session.agent.tools) == ("a", "Of the session.", [])
    assert sdk.beta.agents.retrieve(agent.id).system == "Of the agent."
    assert [found.id for found in sdk.beta.agents.list()] == [agent.id], "what is for one session is not listed"
    newest = workspace.get("/v1/runs", session_id=session.id)["data"][0]["id"]
    assert workspace.get(f"/v1/runs/{newest}/wait")["output"] == "Two."
    return session


def update_session(sdk: Anthropic, workspace: Workspace) -> Any:
    session = talked(sdk, workspace)
    schema: Any = {"type": "object", "properties": {}}
    tool: Any = {"type": "custom", "name": "ring", "description": "Rings.", "input_schema": schema}
    changed: Any = sdk.beta.sessions.update(session.id, title="New", metadata={"k": "v"}, agent={"tools": [tool]})
    assert (changed.title, changed.metadata, [t.name for t in changed.agent.tools]) == ("New", {"k": "v"}, ["ring"])
    with pytest.raises(anthropic.UnprocessableEntityError, match="listed twice"):
        sdk.beta.sessions.update(session.id, agent={"tools": [tool, tool]})
    sdk.beta.sessions.events.send(session.id, events=[message(script({"text": "slow ", "words": 5000, "delay_ms": 20}))])
    with pytest.raises(anthropic.ConflictError):
        sdk.beta.sessions.update(session.id, agent={"tools": []})
    return changed


SHARED: dict[str, Callable[[Any, Workspace], Any]] = {
    "agents.create": lambda sdk, _: sdk.beta.agents.create(name="a", model="demo:echo"),
    "agents.retrieve": lambda sdk, _: sdk.beta.agents.retrieve(
        sdk.beta.agents.create(name="a", model="demo:echo").id, version=1
    ),
    "agents.update": lambda sdk, _: sdk.beta.agents.update(sdk.beta.agents.create(name="a", model="demo:echo").id, system="b"),
    "agents.archive": lambda sdk, _: sdk.beta.agents.archive(sdk.beta.agents.create(name="a", model="demo:echo").id),
    "agents.list": lambda sdk, _: [new_session(sdk), *sdk.beta.agents.list(limit=5, include_archived=True)][-1],
    "agents.versions.list": lambda sdk, _: next(iter(sdk.beta.agents.versions.list(new_session(sdk).agent.id, limit=1))),
    "sessions.create": with_overrides,
    "sessions.retrieve": lambda sdk, workspace: sdk.beta.sessions.retrieve(talked(sdk, workspace).id),
    "sessions.update": update_session,
    "sessions.list": lambda sdk, _: [new_session(sdk), *sdk.beta.sessions.list(order="asc", statuses=["idle"], limit=1)][-1],
    "sessions.archive": lambda sdk, workspace: sdk.beta.sessions.archive(talked(sdk, workspace).id),
    "sessions.delete": lambda sdk, workspace: sdk.beta.sessions.delete(talked(sdk, workspace).id),
    "sessions.events.list": lambda sdk, workspace: [*sdk.beta.sessions.events.list(talked(sdk, workspace).id)][-1],
    "sessions.events.send": lambda sdk, _: sdk.beta.sessions.events.send(new_session(sdk).id, events=[message("hi")]).data[0],
    "sessions.events.stream": stream_session,
    "sessions.resources.list": lambda sdk, _: next(iter(sdk.beta.sessions.resources.list(given(sdk).id, limit=1))),
    "sessions.resources.retrieve": retrieve_resource,
    "sessions.resources.add": add_resource,
    "sessions.threads.list": lambda sdk, workspace: next(iter(sdk.beta.sessions.threads.list(talked(sdk, workspace).id))),
    "sessions.threads.retrieve": lambda sdk, workspace: sdk.beta.sessions.threads.retrieve(**primary(sdk, workspace)),
    "sessions.threads.events.list": lambda sdk, workspace: [*sdk.beta.sessions.threads.events.list(**primary(sdk, workspace))][
        -1
    ],
    "sessions.threads.events.stream": stream_thread,
    "files.upload": lambda sdk, _: file(sdk),
    "files.list": lambda sdk, _: [file(sdk), *sdk.beta.files.list(limit=1)][-1],
    "files.retrieve_metadata": lambda sdk, _: sdk.beta.files.retrieve_metadata(file(sdk).id),
    "files.delete": lambda sdk, _: sdk.beta.files.delete(file(sdk).id),
    "models.list": lambda sdk, _: next(iter(sdk.beta.models.list())),
}
READ: dict[str, Callable[[Any], bytes]] = {"files.download": lambda sdk: sdk.beta.files.download(file(sdk).id).read()}
BY_ITSELF = {"sessions.events.tool_runner"}


def test_no_method_of_the_package_is_forgotten() -> None:
    decided = SHARED.keys() | READ.keys() | BY_ITSELF | NOT_SHARED.keys()
    found = {
        f"{area}.{name}"
        for client in (Anthropic(api_key="x"), AsyncAnthropic(api_key="x"))
        for area in AREAS
        for name in methods(getattr(client.beta, area))
    }
    assert found == decided


def test_no_event_that_the_package_sends_is_forgotten() -> None:
    members: tuple[Any, ...] = get_args(types.BetaManagedAgentsEventParams)
    sent = {get_args(get_type_hints(member)["type"])[0] for member in members}
    assert sent - NOT_SHARED_EVENTS.keys() <= SDK_TYPES
    assert NOT_SHARED_EVENTS.keys() <= sent


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_method_answers_what_the_package_expects(sdk: Anthropic, workspace: Workspace, name: str) -> None:
    sound(SHARED[name](sdk, workspace))


def test_a_file_is_downloaded(sdk: Anthropic) -> None:
    assert READ["files.download"](sdk) == b"given"


async def test_the_tool_runner_of_the_package_runs_custom_tools(sdk: Anthropic, workspace: Workspace) -> None:
    asked: list[str] = []

    @beta_async_tool
    async def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "30 degrees"

    tool: Any = {"type": "custom", "name": "weather", "description": "Weather.", "input_schema": weather.input_schema}
    agent = sdk.beta.agents.create(name="reporter", model="demo:script", tools=[tool])
    session = sdk.beta.sessions.create(agent=agent.id, environment_id="env_default")
    call = {"tools": [{"name": "weather", "input": {"city": "Rome"}}]}
    sdk.beta.sessions.events.send(session.id, events=[message(script(call, {"text": "Hot."}))])

    async with AsyncAnthropic(base_url=workspace.service.url, api_key=workspace.key) as client:
        calls = [done async for done in client.beta.sessions.events.tool_runner(session.id, tools=[weather], max_idle=0.1)]

    assert (asked, len(calls)) == (["Rome"], 1)
    events: list[Any] = list(sdk.beta.sessions.events.list(session.id))
    assert [event.content[0].text for event in events if event.type == "agent.message"] == ["Hot."]


@pytest.mark.parametrize("name", ["sessions.resources.delete", "sessions.threads.archive", "models.retrieve"])
def test_what_is_not_shared_is_said_to_be_missing(sdk: Anthropic, name: str) -> None:
    session = given(sdk)
    call: dict[str, Callable[[], Any]] = {
        "sessions.resources.delete": lambda: sdk.beta.sessions.resources.delete(session.resources[0].id, session_id=session.id),
        "sessions.threads.archive": lambda: sdk.beta.sessions.threads.archive("sthr_x", session_id=session.id),
        "models.retrieve": lambda: sdk.beta.models.retrieve("demo:echo"),
    }
    with pytest.raises(anthropic.APIStatusError) as caught:
        call[name]()
    assert caught.value.status_code in (404, 405)
