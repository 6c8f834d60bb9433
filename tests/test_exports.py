"""A session leaves as a document, and comes back from it."""

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from markdown_it import MarkdownIt

from domain.multiagent import run_of_thread, thread_of
from tests.conversations import Conversation, call, check_transcript, events, hold, log, say, script, transcript
from tests.service import ServiceThread, Workspace

ID = re.compile(r'"((?:sevt|run|sthr|artf|appr|sesn|agent)_[0-9a-z]{26})"')
DIFFERENT = ("exported_at", "created_at", "updated_at")
"""Of a document and its session, beside all ids."""


@pytest.fixture(scope="module")
def held(service: ServiceThread) -> Iterator[tuple[Workspace, Conversation]]:
    with service.workspace() as workspace:
        yield workspace, hold(workspace)


def export(workspace: Workspace, session_id: str) -> dict[str, Any]:
    return workspace.get(f"/v1/sessions/{session_id}/export")


def send(workspace: Workspace, document: object, **params: str) -> httpx2.Response:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return workspace.http.post("/v1/sessions/import", content=content, params=params)


def bring(workspace: Workspace, document: object, **params: str) -> dict[str, Any]:
    response = send(workspace, document, **params)
    assert response.status_code == 201, response.text
    return response.json()


def without_ids(document: dict[str, Any]) -> Any:
    """With ids numbered as they come, and without what must differ. What people and models said stays as it is."""
    plain = copy.deepcopy(document)
    for members in (plain, plain["session"]):
        for name in DIFFERENT:
            members.pop(name, None)
    text = json.dumps(plain)
    known: dict[str, str] = {}
    return json.loads(ID.sub(lambda found: known.setdefault(found[1], f'"{found[1][:4]}{len(known)}"'), text))


def test_what_comes_back_is_what_left(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    document = export(workspace, conversation.id)
    assert (document["type"], document["version"], document["last_seq"]) == ("perdure.session", 1, len(document["events"]))
    assert document["events"] == log(workspace, conversation.id)
    assert "c2lnbmVk" not in json.dumps(document), "a signature left"
    assert document["usage"]["output_tokens"] == workspace.get(conversation.path)["usage"]["output_tokens"]
    rows = {run["id"]: run for run in workspace.get("/v1/runs", session_id=conversation.id)["data"]}
    for run in document["runs"]:
        assert {name: rows[run["id"]][name] for name in run} == run

    with workspace.service.workspace() as other:  # where none of its agents is
        made = bring(other, document)
        again = export(other, made["id"])

        assert document["session"]["permissions"] == {"write": "always_allow"}
        assert again["session"]["permissions"] == made["permissions"] == {}  # people here are asked
        document["session"]["permissions"] = {}
        # Said in text, which is not touched: the artifact's id in a tool's result.
        assert without_ids(again) == without_ids(document)
        assert not set(ID.findall(json.dumps(again["runs"]))) & set(ID.findall(json.dumps(document)))
        assert (made["status"], made["message_count"], made["usage"]["output_tokens"]) == (
            "idle",
            workspace.get(conversation.path)["message_count"],
            0,
        )
        assert other.get(f"/v1/sessions/{made['id']}/artifacts")["data"] == []
        assert other.get("/v1/approvals")["data"] == []
        assert all(event.private is None for event in events(other, made["id"]))
        assert len(other.get(f"/v1/sessions/{made['id']}/threads")["data"]) == 2
        check_transcript(transcript(other, made["id"])[:-1])
        helps = call("delegate", agent="helper", task=script({"text": "Gladly."}))
        run = say(other, made["id"], {"tools": [helps]}, {"text": "We went on."}).wait()
        assert (run["status"], run["output"]) == ("completed", "We went on.")
        assert "Gladly." in json.dumps(log(other, made["id"]))


def test_with_an_agent_of_ones_own(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    document = export(workspace, conversation.id)
    document["agent"]["model"] = {"id": "nowhere:such"}
    with workspace.service.workspace() as other:
        refused = send(other, document)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/agent/model"
        assert other.get("/v1/sessions")["data"] == []
        mine = other.agent()["id"]

        made = bring(other, document, agent=mine)

        assert (made["agent"]["id"], made["agent"]["version"]) == (mine, 1)
        assert say(other, made["id"], {"text": "As myself."}).wait()["output"] == "As myself."
        assert send(other, document, agent="nobody").status_code == 404


def test_all_that_a_session_may_have_is_exported(workspace: Workspace) -> None:
    """What an update adds, too; and a batch's run, which has its `custom_id` beside its metadata."""
    full = {f"k{n}": "v" for n in range(16)}
    agent = workspace.agent()["id"]
    session = workspace.post("/v1/sessions", {"agent": agent, "metadata": full})["id"]
    for more in ({"metadata": {"one more": "v"}}, {"metadata": {"k" * 65: "v"}}):
        assert workspace.post(f"/v1/sessions/{session}", more, expect=422)["errors"][0]["pointer"].startswith("/metadata")
    policies = [{f"{letter}{n}": "always_ask" for n in range(150)} for letter in "ab"]
    workspace.post(f"/v1/sessions/{session}", {"permissions": policies[0]}, expect=200)
    refused = workspace.post(f"/v1/sessions/{session}", {"permissions": policies[1]}, expect=422)
    assert refused["errors"][0]["pointer"] == "/permissions"
    assert workspace.post(f"/v1/sessions/{session}", {"metadata": {"k0": None, "one more": "v"}}, expect=200)
    assert len(export(workspace, session)["session"]["metadata"]) == 16
    item = {"custom_id": "c", "input": script({"text": "ok"}), "metadata": full}
    batch = workspace.post("/v1/batches", {"agent": agent, "inputs": [item]}, expect=201)["id"]
    deadline = time.monotonic() + 30
    while workspace.get(f"/v1/batches/{batch}")["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = workspace.get("/v1/runs", batch_id=batch)["data"]
    document = export(workspace, run["session_id"])
    assert document["runs"][0]["metadata"] == {**full, "custom_id": "c"}
    assert bring(workspace, document)


def test_an_export_while_a_run_writes_ends_at_one_place(workspace: Workspace) -> None:
    session_id = workspace.post("/v1/sessions", {"agent": workspace.agent(tools=["plan"])["id"]})["id"]
    step = {"tools": [call("plan", items=[])], "text": "On."}
    run = say(workspace, session_id, *[step] * 60, {"text": "End."})
    run.until(lambda row: row["status"] == "running")

    document: dict[str, Any] = {}
    while not (row := run.row)["finished_at"]:
        document = export(workspace, session_id)
        assert [event["seq"] for event in document["events"]] == list(range(1, document["last_seq"] + 1))
        steps = sum(event["type"] == "span.model_request_end" for event in document["events"])
        assert sum(run["step_count"] for run in document["runs"]) == steps
    assert row["status"] == "completed"
    made = bring(workspace, document)
    assert (made["status"], made["active_run_id"]) == ("idle", None)
    assert {run["status"] for run in workspace.get("/v1/runs", session_id=made["id"])["data"]} <= {"cancelled", "completed"}
    assert say(workspace, made["id"], {"text": "On."}).wait()["status"] == "completed"


def test_as_markdown(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    response = workspace.http.get(f"{conversation.path}/export", params={"format": "markdown"})
    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    assert 'attachment; filename="A *rich* one.md"' in response.headers["content-disposition"]
    text = response.text

    tokens = MarkdownIt("commonmark").parse(text)
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[0] == r"A \*rich\* one"
    assert sum(heading.startswith("User") for heading in headings) == 6
    assert any("withdrawn" in heading for heading in headings)
    assert any("interrupted" in heading for heading in headings)
    assert headings[-3:][0] == "Sub-agent helper: Look"
    assert text.rstrip().splitlines()[-1].startswith("Cost: ")
    # The answer leaves a block of code, a comment and a tag open: what follows is as it would be without.
    assert tokens[-2].type == "inline"
    assert tokens[-2].content.startswith("Cost: ")
    html = [token.content for token in tokens if token.type == "html_block"]
    assert html
    assert all(re.fullmatch(r"<details><summary>\w+</summary>\n|</details>\n", block) for block in html), html
    second = text.index("The second answer.")
    assert text.index("Here: ```python") < second, "a queued message stands where it was read"
    uses = text.split("**Tool:** ")
    (denied,) = [use for use in uses if "**Denied**: Not b." in use]
    assert denied.index('"file_path": "b.txt"') < denied.index("A person denied this call")
    assert any("**Artifact:** a.txt (55 bytes" in use for use in uses)
    assert any("**Question:**" in use and "> red" in use for use in uses)


def test_names_that_no_header_may_carry(workspace: Workspace) -> None:
    title = '../"x"\r\nSet-Cookie: a=b; ü.exe' + "y" * 300
    session_id = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"], "title": title})["id"]
    response = workspace.http.get(f"/v1/sessions/{session_id}/export")
    assert "set-cookie" not in response.headers
    assert len(response.headers["content-disposition"]) < 500
    assert ".." not in response.headers["content-disposition"]
    made = bring(workspace, response.content)
    assert (made["title"], made["message_count"]) == (title, 0)


def of_type(document: dict[str, Any], type: str) -> dict[str, Any]:
    return next(event for event in document["events"] if event["type"] == type)


def opener(document: dict[str, Any]) -> dict[str, Any]:
    return of_type(document, "session.thread_created")


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("type", lambda d: d.update(type="other"), "/type"),
    ("version", lambda d: d.update(version=2), "/version"),
    ("unknown member", lambda d: d.update(extra=1), "/extra"),
    ("no session", lambda d: d.pop("session"), "/session"),
    ("unknown type", lambda d: d["events"][0].update(type="user.nothing"), "/events/0"),
    ("private", lambda d: d["events"][5].update(private={"signature": "x"}), "/events/5/private"),
    ("duplicate id", lambda d: d["events"][3].update(id=d["events"][2]["id"]), "/events/3/id"),
    ("seq that stands", lambda d: d["events"][3].update(seq=d["events"][2]["seq"]), "/events/3/seq"),
    ("seq of text", lambda d: d["events"][0].update(seq="1"), "/events/0/seq"),
    ("another session", lambda d: d["events"][1].update(session_id="sesn_" + "0" * 26), "/events/1/session_id"),
    ("no such run", lambda d: d["events"][0].update(run_id="run_" + "0" * 26), "/events/0/run_id"),
    ("no run", lambda d: d["events"][0].update(run_id=None), "/events/0/run_id"),
    ("no such tool use", lambda d: of_type(d, "agent.tool_result").update(tool_use_id="sevt_x"), "tool_use_id"),
    (
        "no such call",
        lambda d: of_type(d, "span.model_request_end").update(model_request_start_id="x"),
        "model_request_start_id",
    ),
    ("no such thread", lambda d: of_type(d, "session.thread_created").update(session_thread_id="sthr_x"), "session_thread_id"),
    (
        "the session's own thread",
        lambda d: opener(d).update(session_thread_id=thread_of(d["session"]["id"])),
        "session_thread_id",
    ),
    (
        "a thread that opens itself",
        lambda d: opener(d).update(run_id=run_of_thread(opener(d)["session_thread_id"])),
        "session_thread_id",
    ),
    ("a thread twice", lambda d: d["events"].append(opener(d) | {"id": "sevt_" + "0" * 26, "seq": 9_999}), "session_thread_id"),
    ("too expensive", lambda d: of_type(d, "span.model_request_end").update(cost={"amount": "1e999999999"}), "cost"),
    (
        "too many tokens",
        lambda d: of_type(d, "span.model_request_end")["model_usage"].update(input_tokens=10**30),
        "model_usage",
    ),
    ("attempt", lambda d: of_type(d, "run.queued").update(attempt=10**30), "attempt"),
    ("text without text", lambda d: of_type(d, "agent.message").update(content=[{"type": "text"}]), "/content/0/text"),
    ("an agent that begins", lambda d: of_type(d, "user.message").update(type="user.answer", tool_use_id="x"), "tool_use_id"),
    ("nobody asked", lambda d: d["events"].pop(0), "/events/4"),
    (
        "a year that is none",
        lambda d: of_type(d, "approval.requested").update(expires_at="0001-01-01T00:00:00+14:00"),
        "/events/9",
    ),
    ("deep", lambda d: of_type(d, "agent.tool_use").update(input=nested(100)), "/events/7"),
    ("NUL", lambda d: of_type(d, "agent.message").update(content=[{"type": "text", "text": "\0"}]), "/events/6"),
    (
        "half a surrogate",
        lambda d: of_type(d, "agent.message").update(content=[{"type": "text", "text": "\ud800"}]),
        "/events/6",
    ),
    (
        "its own parent",
        lambda d: d["runs"][0].update(kind="subagent", parent_run_id=d["runs"][0]["id"]),
        "/runs/0/parent_run_id",
    ),
    ("a run twice", lambda d: d["runs"].append(d["runs"][0]), "/id"),
    ("no such agent", lambda d: d["runs"][0]["agent"].update(version=7), "/runs/0/agent"),
    ("no limits", lambda d: d["runs"][0].update(limits={"max_steps": 10**30}), "/runs/0/limits/max_steps"),
    ("not its agent", lambda d: d["session"]["agent"].update(version=7), "/session/agent"),
    ("policy", lambda d: d["session"].update(permissions={"write": "whatever"}), "/session/permissions/write"),
    ("agent", lambda d: d["agent"].update(limits={"max_steps": 0}), "/agent/limits/max_steps"),
    ("nobody to delegate to", lambda d: d.update(subagents=[]), "/subagents"),
]


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(("change", "pointer"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_not_right_is_refused(
    held: tuple[Workspace, Conversation], change: Callable[[dict[str, Any]], object], pointer: str
) -> None:
    workspace, conversation = held
    document = export(workspace, conversation.id)
    change(document)
    before = len(workspace.get("/v1/sessions", limit=100)["data"])

    response = send(workspace, document)

    assert response.status_code == 422, response.text
    pointers = [fault["pointer"] for fault in response.json()["errors"]]
    assert any(found.endswith(pointer) or found.startswith(pointer) for found in pointers), pointers
    assert len(workspace.get("/v1/sessions", limit=100)["data"]) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"type": "perdure.session"', 400),
        (b'{"events": [' + b"[" * 100_000, 400),
        (b'{"events": [{"seq": ' + b"1" * 5000 + b"}]}", 400),
        (b'{"version": NaN}', 400),
        (b"\xff\xfe{}", 400),
        (b"{} {}", 400),
        (b"{}", 422),
        (b'{"events": [' + b"0," * 60_000 + b"0]}", 422),
        (b'{"title": "' + b"x" * (17 << 20) + b'"}', 413),
    ],
)
def test_what_is_no_document_is_refused(workspace: Workspace, content: bytes, status: int) -> None:
    response = send(workspace, content)
    assert response.status_code == status, response.text


def test_strangers_get_nothing(held: tuple[Workspace, Conversation], workspace: Workspace) -> None:
    theirs, conversation = held
    for format in ("json", "markdown"):
        workspace.get(f"{conversation.path}/export", format=format, expect=404)
    workspace.get(f"{conversation.path}/export", format="pdf", expect=422)
    assert send(workspace, export(theirs, conversation.id), agent=conversation.agent_id).status_code == 404
    assert workspace.get("/v1/sessions", forked_from=conversation.id)["data"] == []
    with workspace.service.workspace(("sessions:read",)) as reader:
        assert send(reader, b"{}").status_code == 403
        reader.post(f"{conversation.path}/fork", expect=403)


def test_only_so_much(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.routes.imports.MAX_DOCUMENT", 1 << 20)
    large = b" " * (1 << 20) + b"{}"
    for content in (large, iter([large])):  # said before, and only found
        assert workspace.http.post("/v1/sessions/import", content=content).status_code == 413
    many = b'{"events": [' + b",".join(b"%d" % n for n in range(19)) + b"]}"
    assert len(send(workspace, many).json()["errors"]) == 20  # and no more, however many there are


def test_the_same_document_twice_under_one_key(workspace: Workspace) -> None:
    run = workspace.start({"text": "ok"}).wait()
    document = json.dumps(export(workspace, run["session_id"])).encode()
    headers = {"Idempotency-Key": "import-1"}

    def post(content: bytes) -> httpx2.Response:
        return workspace.http.post("/v1/sessions/import", content=content, headers=headers)

    first, again = post(document), post(document)
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert post(document + b" ").status_code == 422


def test_layouts_of_json(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was written, and in whatever order, read in pieces of any size: only what it says counts."""
    run = workspace.start({"text": 'ok "\\ñ✓😀'}).wait()
    document = export(workspace, run["session_id"])
    backwards = dict(reversed(list(document.items())))
    monkeypatch.setattr("api.json_pieces.CHUNK", 3)
    texts = (
        json.dumps(document, indent=4),
        json.dumps(backwards, separators=(",", ":"), ensure_ascii=False),
        json.dumps(document) + "\n\n",
    )
    for text in texts:
        made = bring(workspace, text.encode())
        assert made["last_message"]["text"] == 'ok "\\ñ✓😀'
        assert without_ids(export(workspace, made["id"]))["events"] == without_ids(document)["events"]


def test_the_faults_of_a_sub_agent_are_found(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    document = export(workspace, conversation.id)
    document["subagents"][0]["tools"] = [{"type": "function", "name": "nothing"}]

    refused = send(workspace, document)

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/subagents/0/tools/0"


def test_what_an_import_only_tells_of_is_no_artifact_of_a_fork(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    document = export(workspace, conversation.id)
    of_type(document, "agent.artifact").update(size_bytes=10**30)
    made = bring(workspace, document)

    forked = workspace.post(f"/v1/sessions/{made['id']}/fork", {}, expect=201)["session"]

    assert workspace.get(f"/v1/sessions/{forked['id']}/artifacts")["data"] == []
