"""Titles: a model writes one after a session's first turn, holds up nobody, and never overrides a person."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from domain.clock import now
from domain.commands import SweepInput
from domain.errors import Invalid
from domain.titles import MAX_CHARS, title_of
from providers.config import CommandConfig, presets
from settings import TitleSettings
from storage.starts import Route
from storage.tables import SessionRow
from tests.providers.strict import strict_model
from tests.service import RunView, ServiceThread, Workspace
from tests.sweeping import sweeper_of
from worker import routes
from workflows.client import RunClient
from workflows.payloads import data_converter

CONFIG = """
[providers.single]
kind = "scripted"
concurrency = 1

[titles]
model = "single:script"
"""
FIRST = {"text": "Here you are.", "usage": {"input_tokens": 100, "output_tokens": 10}}
USAGE = {"input_tokens": 7, "output_tokens": 3}


@pytest.fixture(scope="module")
def naming(tmp_path_factory: pytest.TempPathFactory, database_url: str | None) -> Iterator[ServiceThread]:
    """A service whose titles are the next step of the script that the first turn has played."""
    folder = tmp_path_factory.mktemp("naming")
    (folder / "perdure.toml").write_text(CONFIG)
    with ServiceThread(folder, database_url) as running:
        yield running


VENDORS = """
[providers.claude]
kind = "anthropic"
base_url = "{model.url}"
api_key_env = "PATH"

[providers.gpt]
kind = "openai_compatible"
base_url = "{model.url}/v1"
"""


@pytest.fixture
def named(naming: ServiceThread) -> Iterator[Workspace]:
    with naming.workspace() as fresh:
        yield fresh


class Talk:
    """A session, over HTTP."""

    def __init__(self, workspace: Workspace, model: str = "single:script", **members: Any) -> None:
        agent = workspace.agent(model=model)["id"]
        self._workspace = workspace
        self.id: str = workspace.post("/v1/sessions", {"agent": agent, **members}, expect=201)["id"]

    @property
    def row(self) -> dict[str, Any]:
        return self._workspace.get(f"/v1/sessions/{self.id}")

    def say(self, *steps: dict[str, Any], text: str | None = None) -> RunView:
        body = {"content": text or json.dumps({"script": steps})}
        return RunView(self._workspace, self._workspace.post(f"/v1/sessions/{self.id}/messages", body)["run"]["id"])

    def rename(self, title: str | None) -> dict[str, Any]:
        return self._workspace.post(f"/v1/sessions/{self.id}", {"title": title}, expect=200)

    def events(self, *types: str) -> list[dict[str, Any]]:
        every = self._workspace.get(f"/v1/sessions/{self.id}/events", limit=1000)["data"]
        return [event for event in every if not types or event["type"] in types]

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 15) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not condition(row := self.row):
            assert time.monotonic() < deadline, (row, self.events())
            time.sleep(0.05)
        return row


def change(service: ServiceThread, session_id: str, **columns: Any) -> None:
    async def write() -> None:
        async with service.parts.database.write() as transaction:
            statement = update(SessionRow).where(col(SessionRow.id) == session_id).values(**columns)
            await transaction.connection.execute(statement)

    service.call(write())


def test_a_model_names_the_session_once_and_the_session_pays(named: Workspace) -> None:
    talk = Talk(named)
    run = talk.say(FIRST, {"text": '"A  *short* title."\nbecause of this', "usage": USAGE})
    row = run.wait()
    session = talk.until(lambda session: session["title"] is not None)

    assert session["title"] == "A *short* title"
    assert (row["usage"]["input_tokens"], row["step_count"]) == (100, 1), "a title is no step of the turn"
    assert (session["usage"]["input_tokens"], session["usage"]["output_tokens"]) == (107, 13)
    suggested, updated = talk.events("session.title_suggested", "session.updated")
    assert (suggested["run_id"], suggested["model"], suggested["model_usage"]["output_tokens"]) == (None, "single:script", 3)
    assert (updated["run_id"], updated["title"]) == (None, "A *short* title")
    assert run.types()[-1] == "run.completed"

    talk.say({"text": "And more."}, {"text": "Another title"}).wait()
    assert talk.row["status"] == "idle"
    assert len(talk.events("session.title_suggested")) == 1


def test_a_title_that_stalls_delays_neither_the_turn_nor_the_next_and_comes_later(named: Workspace) -> None:
    """The provider takes one call at a time: the title's has it, and gives it up to the turn."""
    talk = Talk(named)
    assert talk.say(FIRST, {"text": "Late but there", "stall_attempts": 1}).wait(10)["status"] == "completed"
    time.sleep(1)  # until the title's call has the slot
    assert talk.say({"text": "The next."}).wait(10)["output"] == "The next."
    assert talk.row["title"] is None
    assert talk.until(lambda session: session["title"] is not None, 30)["title"] == "Late but there"
    assert talk.events("session.error") == []


def test_a_person_who_names_it_meanwhile_wins(named: Workspace) -> None:
    talk = Talk(named)
    talk.say(FIRST, {"text": "The model's", "first_token_ms": 3000, "usage": USAGE}).wait()
    time.sleep(1)  # until the title's call is under way
    assert talk.rename("Mine")["title"] == "Mine"
    session = talk.until(lambda session: session["usage"]["input_tokens"] == 107)  # what was asked for is paid for

    assert session["title"] == "Mine"
    assert [event["title"] for event in talk.events("session.title_suggested", "session.updated")] == ["Mine", "The model's"]


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_name_that_was_taken_away_is_not_given_back_by_a_model(named: Workspace, blank: str | None) -> None:
    talk = Talk(named, title="First")
    assert talk.rename(blank)["title"] is None
    talk.say(FIRST, {"text": "The model's"}).wait()
    time.sleep(1)
    assert talk.row["title"] is None


@pytest.mark.parametrize("given", ["", "Given"])
def test_a_session_is_named_after_its_first_turn_unless_it_has_a_name(named: Workspace, given: str) -> None:
    talk = Talk(named, title=given)
    talk.say(FIRST, {"text": "The model's"}).wait()
    assert talk.until(lambda session: session["title"] is not None)["title"] == (given or "The model's")


@pytest.mark.parametrize("answer", [{"fail": {"code": "rejected"}}, {"text": "***"}, {"thinking": "hm"}])
def test_a_title_that_fails_is_given_up_in_silence(named: Workspace, answer: dict[str, Any]) -> None:
    talk = Talk(named)
    talk.say(FIRST, answer).wait()
    talk.say({"text": "Next."}, {"text": "Too late"}).wait()
    time.sleep(1)
    assert talk.row["title"] is None
    assert talk.events("session.error") == []


def test_one_shot_runs_and_failed_turns_get_no_title(named: Workspace) -> None:
    run = named.start(FIRST, {"text": "A title"}, agent=named.agent(model="single:script")["id"])
    task = run.wait()["session_id"]
    talk = Talk(named)
    talk.say({"fail": {"code": "rejected"}}, {"text": "A title"}).wait()
    time.sleep(1)
    assert (named.get(f"/v1/sessions/{task}")["title"], talk.row["title"]) == (None, None)
    talk.say(FIRST, {"text": "After the first that was completed"}).wait()
    assert talk.until(lambda session: session["title"] is not None)["title"] == "After the first that was completed"


def test_a_turn_whose_message_was_sent_to_the_one_before_names_the_session_too(named: Workspace) -> None:
    talk = Talk(named)
    first = talk.say({"text": "Never said", "first_token_ms": 20_000})
    first.until(lambda row: row["status"] == "running")
    steered = {"content": json.dumps({"script": [FIRST, {"text": "Of what was steered"}]}), "on_busy": "steer"}
    named.post(f"/v1/sessions/{talk.id}/messages", steered, expect=201)
    first.command("cancel")
    assert talk.until(lambda session: session["title"] is not None)["title"] == "Of what was steered"


def test_a_title_whose_start_was_lost_is_started_by_the_sweeper(service: ServiceThread, workspace: Workspace) -> None:
    """The worker died between the end of the turn and what follows from it."""
    talk = Talk(workspace, model="demo:script")
    talk.say(FIRST, {"text": "Found again"}).wait()
    change(service, talk.id, titling="due", updated_at=now() - timedelta(minutes=1))

    async def sweep() -> None:
        client = await Client.connect(service.temporal_address, data_converter=data_converter)
        commands = RunClient(client, service.settings.task_queue)
        sweeper = sweeper_of(service.parts, client, commands, {"demo": Route(titles=lambda model: model)})
        await ActivityEnvironment().run(sweeper.run, SweepInput(since=now()))

    service.call(sweep())
    assert talk.until(lambda session: session["title"] is not None)["title"] == "Found again"


def test_a_title_whose_start_was_lost_is_started_at_the_next_turns_end(named: Workspace) -> None:
    talk = Talk(named, title="x")
    talk.say(FIRST).wait()
    change(named.service, talk.id, titling="due", title=None)
    talk.say(FIRST, {"text": "Second chance"}).wait()
    assert talk.until(lambda session: session["title"] is not None)["title"] == "Second chance"


def test_the_demonstration_names_its_sessions_and_scripts_do_not(workspace: Workspace) -> None:
    plain, demo = Talk(workspace, model="demo:script"), Talk(workspace, model="demo:demo")
    plain.say(FIRST, {"text": "No title of mine"}).wait()
    demo.say(text="What is\na workflow?").wait()
    assert demo.until(lambda session: session["title"] is not None)["title"] == "Demo: What is a workflow?"
    assert plain.row["title"] is None


def test_a_vendors_model_names_its_own_sessions(service: ServiceThread, database_url: str | None, tmp_path: Path) -> None:
    with strict_model() as model:
        (tmp_path / "perdure.toml").write_text(VENDORS.format(model=model))
        with ServiceThread(tmp_path, database_url, temporal=service.temporal_address) as running, running.workspace() as own:
            for provider in ("claude", "gpt"):
                talk = Talk(own, model=f"{provider}:strict")
                talk.say(text=f"Remember fact-{provider}").wait()
                session = talk.until(lambda session: session["title"] is not None)
                assert session["title"] == f"About fact-{provider}"
                (suggested,) = talk.events("session.title_suggested")
                assert (suggested["model"], suggested["model_usage"]["input_tokens"] > 0) == (f"{provider}:strict", True)
        assert (model.faults, len(model.bodies)) == ([], 4), "two turns and two titles"


def test_which_model_names_sessions(tmp_path: Path) -> None:
    configs = {**presets(), "cli": CommandConfig(argv=("true",))}

    def of(**settings: Any) -> dict[str, str | None]:
        return {name: route.titles(f"{name}:m") for name, route in routes(configs, TitleSettings(**settings)).items()}

    own = {"anthropic": "anthropic:m", "openai": "openai:m", "lmstudio": "lmstudio:m", "ollama": "ollama:m"}
    assert of() == {**own, "demo": None, "cli": None}
    assert set(of(model="ollama:small").values()) == {"ollama:small"}
    assert set(of(model="ollama:small", enabled=False).values()) == {None}
    with pytest.raises(Invalid, match=r"titles\.model: there is no provider 'olama'"):
        of(model="olama:small")


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Planning a trip", "Planning a trip"),
        ('\n\n  "Planning a trip."  \n\nIt says what it is about.', "Planning a trip"),
        ("**Title: «Eine Reise»**", "Eine Reise"),
        ("# Planning\ta trip", "Planning a trip"),
        ("<think>They want a title.\nA trip.</think>\nA trip", "A trip"),
        ("<think>and never an end", None),
        ("Is it safe?", "Is it safe?"),
        ("旅行の計画。", "旅行の計画。"),
        ("A\u202ebad\x1b[31m one", "A bad [31m one"),
        ("", None),
        ("…\n--\n", None),
        ("word " * 40, ("word " * 16).strip()[: MAX_CHARS - 1].rstrip() + "…"),
    ],
)
def test_what_is_taken_of_an_answer(answer: str, title: str | None) -> None:
    assert title_of(answer) == title
    assert title is None or 0 < len(title) <= MAX_CHARS
