"""Finding a conversation: by what was said in it, and by what it is."""

import base64
import json
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from domain.search import terms
from storage import search_index
from tests.service import ServiceThread, Workspace


class Talks:
    """Conversations of one agent."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.agent = workspace.agent()["id"]

    def say(self, text: str, answer: str = "hm", **members: Any) -> str:
        """A session in which a person says something and is answered; its id."""
        session = self.workspace.post("/v1/sessions", {"agent": self.agent, **members})["id"]
        self.go_on(session, text, answer)
        return session

    def go_on(self, session: str, text: str, answer: str = "hm") -> None:
        script = json.dumps({"script": [{"thinking": text, "text": answer}]}, ensure_ascii=False)
        run = self.workspace.post(f"/v1/sessions/{session}/messages", {"content": script})["run"]["id"]
        assert self.workspace.get(f"/v1/runs/{run}/wait")["status"] == "completed"

    def titled(self, title: str, **members: Any) -> str:
        return self.workspace.post("/v1/sessions", {"agent": self.agent, "title": title, **members})["id"]

    def search(self, query: str, **params: Any) -> list[dict[str, Any]]:
        return self.workspace.get("/v1/sessions", search=query, **params)["data"]

    def found(self, query: str, **params: Any) -> list[str]:
        return [session["id"] for session in self.search(query, **params)]

    def listed(self, **params: Any) -> list[str]:
        return [session["id"] for session in self.workspace.get("/v1/sessions", **params)["data"]]


@pytest.fixture
def talks(workspace: Workspace) -> Talks:
    return Talks(workspace)


def marks(session: dict[str, Any]) -> list[str]:
    return [part["text"] for part in session["match"]["snippet"] if part["match"]]


def test_what_people_and_agents_say_is_found_and_shown(talks: Talks) -> None:
    asked = talks.say("How tall is the Eiffel tower?", answer="It has 330 metres, says the Encyclopædia.")
    talks.say("Something else altogether")

    (by_question,) = talks.search("eiffel TOWER")
    (by_answer,) = talks.search("330 encycl")

    assert by_question["id"] == by_answer["id"] == asked
    assert marks(by_question) == ["Eiffel", "tower"]
    assert (by_question["match"]["field"], by_question["message_count"]) == ("message", 2)
    assert by_question["last_message"]["text"].startswith("It has 330")
    event = talks.workspace.get(f"/v1/sessions/{asked}/events", types="agent.message")["data"][0]
    assert by_answer["match"]["event_id"] == event["id"]
    assert marks(by_answer) == ["330", "Encyclopædia"]
    assert "match" not in talks.workspace.get("/v1/sessions")["data"][0] or not talks.listed(search="no-such-word")
    assert talks.found("eiffel altogether") == []


def test_phrases_prefixes_accents_and_scripts(talks: Talks) -> None:
    forward = talks.titled("red green café")
    backward = talks.titled("green red 東京の天気")

    assert talks.found('"red green"') == [forward]
    assert set(talks.found("green red")) == {forward, backward}
    assert talks.found("CAFE") == [forward]
    assert set(talks.found("gree")) == {forward, backward}
    assert talks.found("gree red") == []  # only the last word may be a beginning
    assert talks.found('"gree"') == []
    assert talks.found("天気") == [backward]
    assert talks.found("気天") == []


def test_titles_come_first_then_what_is_more_about_it(talks: Talks) -> None:
    once = talks.say(f"zebra {'and other things ' * 60}")
    often = talks.say("zebra zebra, a zebra is a zebra")
    title = talks.titled("About the zebra")

    found = talks.search("zebra")

    assert [session["id"] for session in found] == [title, often, once]
    assert found[0]["match"] | {"score": 0} == {
        "field": "title",
        "event_id": None,
        "score": 0,
        "snippet": [{"text": "About the ", "match": False}, {"text": "zebra", "match": True}],
    }
    scores = [session["match"]["score"] for session in found]
    assert scores == sorted(scores, reverse=True)


def test_a_session_is_found_once_and_pages_repeat_nothing(talks: Talks) -> None:
    made = [talks.titled(f"walrus {number % 2 * 'walrus '}{number}") for number in range(7)]
    chatty = talks.say("walrus walrus", answer="a walrus")
    talks.go_on(chatty, "walrus again", answer="walrus")
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = talks.workspace.get("/v1/sessions", search="walrus", limit=3, **cursor)
        seen += [session["id"] for session in page["data"]]
        assert page["has_more"] == (page["next_page"] is not None)
        if page["next_page"] is None:
            break
        cursor = {"page": page["next_page"]}
        talks.titled("walrus, said later")  # which is on the pages of the next search

    assert len(seen) == len(set(seen)) == 8
    assert set(seen) == {*made, chatty}
    assert len(talks.found("walrus")) > 8
    talks.workspace.get("/v1/sessions", search="walrus", page="bm9uZQ", expect=400)
    forged = base64.urlsafe_b64encode("|".join(["9" * 18] * 3).encode()).decode()
    assert len(talks.found("walrus", page=forged)) > 8
    listing = talks.workspace.get("/v1/sessions", limit=1)["next_page"]
    talks.workspace.get("/v1/sessions", search="walrus", page=listing, expect=400)


def test_titles_are_found_as_they_are_now_and_what_is_deleted_is_not(talks: Talks) -> None:
    session = talks.say("remember the aardvark", title="Old heading")
    talks.workspace.post(f"/v1/sessions/{session}", {"title": "New heading"})

    assert talks.found("old heading") == []
    assert talks.found("new heading") == [session]
    talks.workspace.post(f"/v1/sessions/{session}", {"metadata": {"a": "b"}})
    assert talks.found("new heading") == [session]
    talks.workspace.post(f"/v1/sessions/{session}", {"title": None})
    assert talks.found("heading") == []
    assert talks.workspace.http.delete(f"/v1/sessions/{session}").status_code == 200
    assert talks.found("aardvark") == talks.listed(tag="x") == []


def test_filters_hold_with_search_and_without(talks: Talks) -> None:
    echo = talks.workspace.agent(model="demo:echo")["id"]
    plain = talks.titled("otter", tags=["a", "two words"], metadata={"customer": "42"})
    other = talks.titled("otter", tags=["a"], metadata={"customer": "43", "team": "x=y"})
    third = talks.workspace.post("/v1/sessions", {"agent": echo, "title": "otter"})["id"]
    archived = talks.titled("otter", tags=["a"])
    talks.workspace.post(f"/v1/sessions/{archived}/archive")
    middle = talks.workspace.get(f"/v1/sessions/{other}")["created_at"]

    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {plain, other, third}),
        ({"include_archived": True}, {plain, other, third, archived}),
        ({"tag": "a"}, {plain, other}),
        ({"tag": ["a", "two words"]}, {plain}),
        ({"tag": "a", "include_archived": True}, {plain, other, archived}),
        ({"tag": "a", "statuses": ["idle", "running"]}, {plain, other}),
        ({"tag": "a", "statuses": "running"}, set()),
        ({"tag": "A"}, set()),
        ({"metadata": "customer=42"}, {plain}),
        ({"metadata": ["customer=43", "team=x=y"], "tag": "a"}, {other}),
        ({"provider": "demo"}, {plain, other, third}),
        ({"provider": "demo:echo"}, set()),
        ({"model": "demo:echo"}, {third}),
        ({"model": "demo:script", "tag": "two words", "agent_id": talks.agent}, {plain}),
        ({"agent_id": echo}, {third}),
        ({"agent_id": echo, "tag": "a"}, set()),
        ({"created_at[gt]": middle}, {third}),
        ({"created_at[lte]": middle, "tag": "a", "order": "asc"}, {plain, other}),
    ]
    for params, expected in cases:
        assert set(talks.listed(**params)) == expected, params
        assert set(talks.found("otter", **params)) == expected, params
    first = talks.workspace.get("/v1/sessions", tag="a", limit=1)
    second = talks.workspace.get("/v1/sessions", tag="a", limit=1, page=first["next_page"])
    assert [page["data"][0]["id"] for page in (first, second)] == [other, plain]


def test_a_filter_finds_what_is_older_than_the_newest_hits(talks: Talks, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("RANKED_TITLES", "RANKED_MESSAGES"):
        monkeypatch.setattr(search_index, bound, 2)
    old = talks.titled("the common 100% word", tags=["rare"])
    then = talks.workspace.get(f"/v1/sessions/{old}")["created_at"]
    fork = talks.workspace.post(f"/v1/sessions/{old}/fork", {"title": "a common copy"})["session"]["id"]
    newer = [talks.titled("the common word") for _ in range(3)]

    assert talks.found("common") == newer[:0:-1]
    assert talks.found("common", **{"created_at[lte]": then}) == [old]
    assert talks.found("common", forked_from=old) == [fork]
    assert set(talks.found("common", tag="rare")) == {old, fork}
    assert talks.found('"common 100"', tag="rare") == [old]
    assert talks.found("commo", tag="rare", statuses="running") == []
    assert talks.found("ommon", tag="rare") == []


def test_tags_are_set_changed_and_checked(talks: Talks) -> None:
    session = talks.titled("x", tags=["b", "a", "b"])
    at = f"/v1/sessions/{session}"

    assert talks.workspace.get(at)["tags"] == ["b", "a"]
    assert talks.workspace.post(at, {"title": "y"})["tags"] == ["b", "a"]
    assert talks.workspace.post(at, {"tags": ["ünïcode 🦉"]})["tags"] == ["ünïcode 🦉"]
    assert talks.listed(tag="a") == []
    assert talks.listed(tag="ünïcode 🦉") == [session]
    assert talks.workspace.post(at, {"metadata": {"k": "v"}})["metadata"] == {"k": "v"}
    talks.workspace.post(at, {"metadata": {"k": None}})
    assert talks.listed(metadata="k=v") == []
    assert talks.workspace.post(at, {"tags": []})["tags"] == []
    for bad in ([""], ["a,b"], [" a"], ["a  b"], ["a\n"], ["x" * 51], [str(number) for number in range(21)], "a", [1]):
        talks.workspace.post(at, {"tags": bad}, expect=422)


def test_another_workspace_finds_nothing(service: ServiceThread, talks: Talks) -> None:
    session = talks.say("the secret giraffe", tags=["giraffe"], metadata={"giraffe": "1"})
    (workspace_id,) = service.call(_workspace_of(service, session))
    with service.workspace() as other:
        stranger = Talks(other)
        mine = stranger.titled("giraffe")

        assert stranger.found("giraffe") == [mine]
        assert stranger.found(f"{workspace_id} giraffe") == []
        assert stranger.listed(tag="giraffe") == stranger.listed(metadata="giraffe=1") == []
        assert stranger.found("giraffe", agent_id=talks.agent) == []


async def _workspace_of(service: ServiceThread, session_id: str) -> list[str]:
    async with service.parts.database.read() as connection:
        statement = text("SELECT workspace_id FROM sessions WHERE id = :id")
        return list((await connection.execute(statement, {"id": session_id})).scalars())


@pytest.fixture(scope="module")
def open_talks(service: ServiceThread) -> Generator[Talks]:
    with service.workspace() as workspace:
        yield Talks(workspace)


ODD = (
    '"', '""', "' OR 1=1 --", "*", "a*", "NEAR(a b)", "a AND", "NOT", "-a", "words : a", "^a", "{a b} : c", "a & b | !c", "<->",
    "\\", "'\\''", "a:*", "%", "_", "x" * 300, "🦉", "\u0301", "\ufb03", "title_", "wrkspc_default",
)  # fmt: skip


def test_whatever_is_typed_is_no_fault(open_talks: Talks) -> None:
    open_talks.titled("a ordinary NOT title")
    for query in ODD:
        open_talks.search(query)
    assert open_talks.found("title_") != []  # a word like any other
    assert open_talks.found("wrkspc_default") == []
    open_talks.workspace.get("/v1/sessions", search="x" * 301, expect=422)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40))
    def typed(query: str) -> None:
        session = open_talks.titled(query) if query.strip() else None
        found = open_talks.found(query, limit=100)
        assert session is None or not _has_words(query) or session in found

    typed()


def _has_words(query: str) -> bool:
    return bool(terms(query))
