"""A session is forked after any of its events, and goes on there as if nothing had come after it."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from domain.completions import Thinking
from storage.database import Connection
from storage.rows import fetch
from tests.conversations import Conversation, call, check_transcript, events, hold, log, say, script, transcript
from tests.files import directory, results, stored, upload
from tests.service import RunView, ServiceThread, Workspace, is_delta
from tools.store import FileStore

ID = re.compile(r'"((?:sevt|run|sthr|artf|appr|sesn|sesrsc)_[0-9a-z]{26})"')


@pytest.fixture(scope="module")
def held(service: ServiceThread) -> Iterator[tuple[Workspace, Conversation]]:
    """Held once: forks leave it as it was."""
    with service.workspace() as workspace:
        yield workspace, hold(workspace)


def fork(workspace: Workspace, session_id: str, expect: int = 201, **body: Any) -> dict[str, Any]:
    return workspace.post(f"/v1/sessions/{session_id}/fork", body, expect=expect)


def ids_in(text: str) -> set[str]:
    return set(ID.findall(text))


def kept(workspace: Workspace, session_id: str) -> str:
    """All that is kept of a log, as text."""
    return json.dumps([event.model_dump(mode="json") for event in events(workspace, session_id)])


def test_after_every_event(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    original = log(workspace, conversation.id)
    before = kept(workspace, conversation.id)
    ids = ids_in(before)
    assert len({event["type"] for event in original}) > 30, "not much has happened"

    def one(event: dict[str, Any]) -> dict[str, Any]:
        made = fork(workspace, conversation.id, after_event_id=event["id"], content=script({"text": "On we go."}))
        RunView(workspace, made["run"]["id"]).wait()
        return made

    with ThreadPoolExecutor(4) as pool:
        forks = list(pool.map(one, original))
    for event, made in zip(original, forks, strict=True):
        session = made["session"]
        run = workspace.get(f"/v1/runs/{made['run']['id']}")
        assert (run["status"], run["output"], run["copied_from"]) == ("completed", "On we go.", None), event
        assert session["forked_from"] == {"session_id": conversation.id, "event_id": event["id"], "before_event_id": None}
        check_transcript(transcript(workspace, session["id"])[:-1])
        assert not ids & ids_in(kept(workspace, session["id"])), event
        every = log(workspace, session["id"])
        assert [e["seq"] for e in every] == list(range(1, len(every) + 1))
        copied = every[: [e["id"] for e in every].index(made["event"]["id"])]
        messages = [e for e in copied if e["type"] in ("user.message", "agent.message") and "session_thread_id" not in e]
        assert session["message_count"] == len(messages) + 1
        if copied:
            check_closed(workspace, copied)
    assert kept(workspace, conversation.id) == before


def check_closed(workspace: Workspace, copied: list[dict[str, Any]]) -> None:
    """Nothing is left open in the copy, its runs can be asked for, and are nobody's spending."""
    types = Counter(event["type"] for event in copied)
    assert types["span.model_request_start"] == types["span.model_request_end"], copied[-3:]
    decided = ("approval.resolved", "approval.cancelled", "approval.expired")
    assert types["approval.requested"] == sum(types[name] for name in decided), copied[-3:]
    ids = {event["run_id"] for event in copied if event["run_id"]}
    runs = [run for run in workspace.get("/v1/runs", session_id=copied[0]["session_id"])["data"] if run["id"] in ids]
    assert len(runs) == len(ids)
    for run in runs:
        assert run["finished_at"] is not None
        assert run["copied_from"].startswith("run_")
        assert (run["usage"]["output_tokens"], run["cost"]) == (0, None)
    for event in copied:
        if event["type"] == "session.thread_created":
            thread = workspace.get(f"/v1/sessions/{event['session_id']}/threads/{event['session_thread_id']}")
            assert thread["status"] in ("idle", "terminated")


def test_the_last_words_of_a_run_are_its_end(held: tuple[Workspace, Conversation]) -> None:
    """Who forks after an answer gets the run that gave it, and not one that was cut off."""
    workspace, conversation = held
    answer = next(
        e for e in log(workspace, conversation.id) if e["type"] == "agent.message" and "Here:" in e["content"][0]["text"]
    )

    made = fork(workspace, conversation.id, after_event_id=answer["id"], title="Another")["session"]

    copied = log(workspace, made["id"])
    assert [e["type"] for e in copied[-3:]] == ["span.model_request_end", "session.status_idle", "run.completed"]
    assert "The second answer." not in json.dumps(copied)
    runs = workspace.get("/v1/runs", session_id=made["id"])["data"]
    assert {run["status"] for run in runs} == {"completed", "cancelled"}  # the one that was withdrawn from the queue
    assert (made["title"], made["status"], made["active_run_id"], made["queue_length"]) == ("Another", "idle", None, 0)
    assert made["last_message"]["text"].startswith("Here:")
    assert made["usage"]["output_tokens"] == 0
    listed = {run["id"] for run in workspace.get("/v1/runs", limit=100)["data"]}
    assert not listed & {run["id"] for run in runs}, "a copy is not listed as a run of the workspace"
    retried = workspace.post(f"/v1/runs/{runs[0]['id']}/retry", expect=409)
    assert retried["code"] in ("conflict", "run_finished")


def test_a_message_is_edited(held: tuple[Workspace, Conversation]) -> None:
    """Before the message as the agent came to it: it was sent in the middle of the turn before."""
    workspace, conversation = held
    second = conversation.messages[1]["event"]

    made = fork(workspace, conversation.id, before_event_id=second["id"], content=script({"text": "Otherwise."}))

    assert RunView(workspace, made["run"]["id"]).wait()["output"] == "Otherwise."
    texts = [e["content"][0]["text"] for e in log(workspace, made["session"]["id"]) if e["type"] == "agent.message"]
    assert texts[-2].startswith("Here:")  # the whole turn before
    assert texts[-1] == "Otherwise."
    origin = made["session"]["forked_from"]
    assert (origin["session_id"], origin["before_event_id"]) == (conversation.id, second["id"])
    forks = [found["id"] for found in workspace.get("/v1/sessions", forked_from=conversation.id, limit=100)["data"]]
    assert made["session"]["id"] in forks
    first = fork(workspace, conversation.id, before_event_id=conversation.messages[0]["event"]["id"])["session"]
    assert (log(workspace, first["id"]), first["message_count"], first["last_message"]) == ([], 0, None)
    assert first["forked_from"]["event_id"] is not None  # the message itself was in the log, and nobody had read it


def test_a_message_that_came_too_late_for_its_run_is_edited_where_the_next_one_read_it(workspace: Workspace) -> None:
    run = workspace.start({"text": "It begins", "words": 400, "delay_ms": 5})
    workspace.stream(f"/v1/runs/{run.id}/events/stream", until=is_delta)
    session_id = run.row["session_id"]
    body = {"content": script({"text": "Read late."}), "on_busy": "steer"}
    late = workspace.post(f"/v1/sessions/{session_id}/messages", body)["event"]
    run.command("cancel", {"reason": "Enough."})
    run.wait()
    following = workspace.get("/v1/runs", session_id=session_id)["data"][0]["id"]
    assert RunView(workspace, following).wait()["output"] == "Read late."

    def edited(session: str, message: str) -> None:
        made = fork(workspace, session, before_event_id=message, content=script({"text": "Otherwise."}))
        assert RunView(workspace, made["run"]["id"]).wait()["output"] == "Otherwise."
        copied = log(workspace, made["session"]["id"])
        assert [e["reason"] for e in copied if e["type"] == "run.cancelled"] == ["Enough."], "the whole turn before"
        assert "Read late." not in json.dumps(copied), "neither the message nor its answer"

    edited(session_id, late["id"])
    copy = fork(workspace, session_id)["session"]["id"]
    edited(copy, next(e["id"] for e in log(workspace, copy) if e["type"] == "user.message" and "late" in json.dumps(e)))


def test_signatures_come_along_and_never_leave(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held

    made = fork(workspace, conversation.id)["session"]

    thoughts = [b for m in transcript(workspace, made["id"]) for b in m.content if isinstance(b, Thinking)]
    assert len(thoughts) >= 2
    assert {thought.signature for thought in thoughts} == {"c2lnbmVk"}
    assert "c2lnbmVk" not in json.dumps(log(workspace, made["id"]))


def test_what_was_decided_for_the_session_later_is_asked_again(held: tuple[Workspace, Conversation]) -> None:
    workspace, conversation = held
    events = log(workspace, conversation.id)
    remembered = next(e for e in events if e["type"] == "approval.resolved" and e["remembered"])

    after = fork(workspace, conversation.id, after_event_id=remembered["id"])["session"]
    before = fork(workspace, conversation.id, before_event_id=remembered["id"])["session"]

    assert (after["permissions"], before["permissions"]) == ({"write": "always_allow"}, {"write": "always_ask"})
    copied = next(e for e in log(workspace, after["id"]) if e["type"] == "approval.resolved" and e["remembered"])
    again = fork(workspace, after["id"], before_event_id=copied["id"])["session"]  # which has no approvals but in its log
    assert again["permissions"] == {"write": "always_ask"}


def test_files_and_artifacts_are_copies(workspace: Workspace) -> None:
    write = [call("write", file_path="dir/a.txt", content="before"), call("publish_artifact", path="dir/a.txt")]
    agent = workspace.agent(tools=["write", "read", "publish_artifact"])["id"]
    session_id = workspace.post("/v1/sessions", {"agent": agent})["id"]
    assert say(workspace, session_id, *({"tools": [use]} for use in write), {"text": "ok"}).wait()["status"] == "completed"
    top = directory(workspace, session_id)
    (top / "link").symlink_to("/etc/passwd")
    (top / "run.sh").write_text("echo")
    (top / "run.sh").chmod(0o700)

    made = fork(workspace, session_id)["session"]["id"]

    mine = directory(workspace, made)
    assert (mine / "dir" / "a.txt").read_text() == "before"
    assert (mine / "link").is_symlink()
    assert (mine / "run.sh").stat().st_mode & 0o777 == 0o700
    rewrites = call("write", file_path="dir/a.txt", content="after")
    assert say(workspace, made, {"tools": [rewrites]}, {"text": "ok"}).wait()["status"] == "completed"
    assert ((top / "dir" / "a.txt").read_text(), (mine / "dir" / "a.txt").read_text()) == ("before", "after")
    (artifact,) = workspace.get(f"/v1/sessions/{made}/artifacts")["data"]
    workspace.http.delete(f"/v1/sessions/{session_id}")
    assert workspace.http.get(f"/v1/artifacts/{artifact['id']}/content").content == b"before"
    assert stored(workspace, artifact["id"])
    assert (
        say(workspace, made, {"tools": [call("read", file_path="dir/a.txt")]}, {"text": "ok"}).wait()["status"] == "completed"
    )
    assert workspace.get(f"/v1/sessions/{made}")["forked_from"]["session_id"] == session_id


def test_a_file_that_is_given_to_the_session_while_its_directory_is_copied_is_there_too(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = [{"type": "file", "file_id": upload(workspace)["id"], "mount_path": "in.csv"}]
    made = workspace.post("/v1/sessions", {"agent": workspace.agent(tools=["read"])["id"], "resources": resources})
    reads = ({"tools": [call("read", file_path="in.csv")]}, {"text": "ok"})
    copy_directory = FileStore.copy_directory

    def copy(self: FileStore, workspace_id: str, source_id: str, session_id: str) -> None:
        copy_directory(self, workspace_id, source_id, session_id)
        assert results(say(workspace, source_id, *reads)) == ["name,price\nÄpfel,3"]

    monkeypatch.setattr(FileStore, "copy_directory", copy)
    forked = fork(workspace, made["id"])["session"]["id"]

    assert results(say(workspace, forked, *reads)) == ["name,price\nÄpfel,3"]


def test_a_fork_that_fails_leaves_no_files(workspace: Workspace, held: tuple[Workspace, Conversation]) -> None:
    agent = workspace.agent(tools=["write"])["id"]
    session_id = workspace.post("/v1/sessions", {"agent": agent})["id"]
    say(workspace, session_id, {"tools": [call("write", file_path="a", content="x")]}, {"text": "ok"}).wait()
    root = directory(workspace, session_id).parent
    headers = {"Idempotency-Key": "fork-1"}
    first = workspace.post(f"/v1/sessions/{session_id}/fork", {}, headers=headers)
    again = workspace.post(f"/v1/sessions/{session_id}/fork", {}, headers=headers)
    assert first == again

    workspace.post(f"/v1/sessions/{session_id}/fork", {"title": "other"}, headers=headers, expect=422)
    fork(workspace, session_id, after_event_id="sevt_nothing", expect=422)
    elsewhere = log(held[0], held[1].id)[0]["id"]
    assert fork(workspace, session_id, after_event_id=elsewhere, expect=422)["errors"][0]["pointer"] == "/after_event_id"
    fork(workspace, session_id, after_event_id="a", before_event_id="b", expect=422)
    fork(workspace, held[1].id, expect=404)

    assert {path.name for path in root.iterdir() if path.name != "stored"} == {session_id, first["session"]["id"]}


@pytest.mark.parametrize(("limit", "status", "code"), [("MAX_EVENTS", 413, "too_large"), ("SECONDS", 503, "copy_too_slow")])
def test_what_is_too_much_is_refused_as_a_whole(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, limit: str, status: int, code: str
) -> None:
    run = workspace.start({"tools": [call("write", file_path="a", content="x")]}, {"text": "ok"}, tools=["write"])
    session_id = run.wait()["session_id"]
    document = workspace.get(f"/v1/sessions/{session_id}/export")
    monkeypatch.setattr(f"api.services.forks.{limit}", 0)

    assert fork(workspace, session_id, expect=status)["code"] == code
    workspace.post("/v1/sessions/import", document, expect=status)

    assert [found["id"] for found in workspace.get("/v1/sessions")["data"]] == [session_id]
    assert [path.name for path in directory(workspace, session_id).parent.iterdir()] == [session_id]


def test_a_fork_costs_what_it_copies_however_long_the_log_is(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = workspace.start({"text": "ok"}).wait()["session_id"]
    first = log(workspace, session_id)[-1]
    for _ in range(3):
        say(workspace, session_id, {"text": "more"}).wait()
    read: list[str] = []

    async def counted(connection: Connection, row: type[Any], statement: Any) -> list[Any]:
        found = await fetch(connection, row, statement)
        read.extend(one.id for one in found)
        return found

    monkeypatch.setattr("storage.copies.fetch", counted)
    fork(workspace, session_id, after_event_id=first["id"])
    assert read == [first["run_id"]]

    monkeypatch.setattr("storage.copies.fetch", fetch)
    monkeypatch.setattr("api.services.forks.MAX_EVENTS", first["seq"])
    monkeypatch.setattr("api.services.forks.outline", None)  # what is too long is not read
    assert fork(workspace, session_id, expect=413)["code"] == "too_large"


def test_while_a_run_is_at_work(workspace: Workspace) -> None:
    """The run goes on, and the fork is idle at where it stood."""
    run = workspace.start({"text": "It begins", "words": 400, "delay_ms": 5})
    run.until(lambda row: row["status"] == "running")

    made = fork(workspace, run.row["session_id"], content=script({"text": "Meanwhile."}))

    assert RunView(workspace, made["run"]["id"]).wait()["output"] == "Meanwhile."
    assert run.row["status"] == "running"
    run.command("cancel")
    run.wait()
