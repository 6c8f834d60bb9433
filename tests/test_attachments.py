"""Images and documents: from a message to what the model is given, and refused where the model has no eyes."""

import json
from base64 import b64encode
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import sessions as types

from tests.service import ServiceThread, Workspace

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 60
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 20
PDF = b"%PDF-1.7\n" + b"x" * 40


def encoded(content: bytes) -> str:
    return b64encode(content).decode()


def inline(kind: str, media_type: str, data: str) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}


PICTURE = inline("image", "image/png", encoded(PNG))
PAPER = {**inline("document", "application/pdf", encoded(PDF)), "title": "Report"}
NOTE = {"type": "document", "title": "Note", "source": {"type": "text", "media_type": "text/plain", "data": "the word is owl"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def at_url(kind: str) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "url", "url": "https://example.com/x"}}


def upload(workspace: Workspace, name: str, content: bytes, media_type: str) -> str:
    return workspace.http.post("/v1/files", files={"file": (name, content, media_type)}).json()["id"]


def in_file(kind: str, file_id: str) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "file", "file_id": file_id}}


def new_session(workspace: Workspace, model: str = "demo:echo") -> str:
    return workspace.post("/v1/sessions", {"agent": workspace.agent(model=model)["id"]})["id"]


def send(workspace: Workspace, session: str, *content: dict[str, Any], expect: int = 201) -> dict[str, Any]:
    return workspace.post(f"/v1/sessions/{session}/messages", {"content": list(content)}, expect=expect)


def answer(workspace: Workspace, sent: dict[str, Any]) -> str:
    run = workspace.get(f"/v1/runs/{sent['run']['id']}/wait", timeout_seconds=30)
    assert run["status"] == "completed", run
    return run["output"]


def test_the_model_is_given_what_was_sent_in_its_order(workspace: Workspace) -> None:
    session = new_session(workspace)
    jpeg = upload(workspace, "photo.bin", JPEG, "application/octet-stream")
    words = upload(workspace, "words.md", b"# Owls", "text/markdown")

    sent = send(
        workspace, session, text("See"), PICTURE, in_file("image", jpeg), text("and"), PAPER, NOTE, in_file("document", words),
        at_url("image"),
    )  # fmt: skip

    assert answer(workspace, sent) == (
        "See [image, image/png, 68 bytes] [image, image/jpeg, 24 bytes] and [document, application/pdf, 49 bytes] "
        "[document: Note]\nthe word is owl\n[end of the document] "
        "[document: untitled]\n# Owls\n[end of the document] [image at https://example.com/x]"
    )
    # The log holds ids and no bytes; what was sent inline is a file of the workspace.
    content = sent["event"]["content"]
    assert [block["source"]["type"] for block in content if "source" in block] == [
        "file",
        "file",
        "file",
        "text",
        "file",
        "url",
    ]
    kept = workspace.http.get(f"/v1/files/{content[1]['source']['file_id']}/content")
    assert (kept.content, kept.headers["content-type"]) == (PNG, "image/png")
    (item, _) = workspace.get(f"/v1/sessions/{session}/items")["data"]
    assert item["content"] == content


def test_a_message_may_be_an_image_alone(workspace: Workspace) -> None:
    session = new_session(workspace)

    assert answer(workspace, send(workspace, session, PICTURE)) == "[image, image/png, 68 bytes]"
    workspace.post(f"/v1/sessions/{session}/events", {"events": [{"type": "user.message", "content": [PICTURE]}]}, expect=200)
    run = workspace.post("/v1/runs", {"agent": workspace.agent(model="demo:echo")["id"], "input": [PICTURE]}, expect=201)
    assert workspace.get(f"/v1/runs/{run['id']}/wait", timeout_seconds=30)["output"] == "[image, image/png, 68 bytes]"
    assert workspace.get(f"/v1/sessions/{run['session_id']}")["message_count"] == 2
    first = workspace.get(f"/v1/sessions/{session}/events", types=["user.message"])["data"][0]
    assert first["content"][0]["type"] == "image"


def test_a_message_is_edited_and_keeps_its_image(workspace: Workspace) -> None:
    session = new_session(workspace)
    sent = send(workspace, session, text("What is"), PICTURE)
    answer(workspace, sent)
    _, picture = sent["event"]["content"]

    edited = {"before_event_id": sent["event"]["id"], "content": [text("Describe"), picture]}
    made = workspace.post(f"/v1/sessions/{session}/fork", edited, expect=201)

    assert answer(workspace, made) == "Describe [image, image/png, 68 bytes]"


@pytest.mark.parametrize(
    ("block", "pointer", "detail"),
    [
        (inline("image", "image/png", "&&&"), "/content/0", "not base64"),
        (inline("image", "image/png", encoded(JPEG)), "/content/0", "is image/jpeg, and not image/png"),
        (inline("image", "image/svg+xml", encoded(b"<svg>")), "/content/0", "no image that models take"),
        (inline("document", "text/plain", encoded(b"\xff\x00")), "/content/0", "no document that models take"),
        (in_file("image", "file_none"), "/content/0", "There is no file file_none"),
        ({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}, "/content", "pattern"),
        ({"type": "image", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}, "/content", "tag"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(workspace: Workspace, block: dict[str, Any], pointer: str, detail: str) -> None:
    problem = send(workspace, new_session(workspace), block, expect=422)

    assert any(fault["pointer"].startswith(pointer) for fault in problem["errors"])
    assert detail in json.dumps(problem)


def test_a_message_holds_no_more_than_vendors_take(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it names the same file, which a worker would have in memory as often."""
    monkeypatch.setattr("api.services.contents.MAX_MESSAGE_BYTES", 2 * len(PNG))
    session, image = new_session(workspace), in_file("image", upload(workspace, "a.png", PNG, "image/png"))

    problem = send(workspace, session, image, PICTURE, image, expect=422)

    assert problem["errors"][0]["pointer"] == "/content/2"
    assert send(workspace, session, image, PICTURE, text("two"))


def test_another_workspaces_file_is_not_there(workspace: Workspace, service: ServiceThread) -> None:
    with service.workspace() as other:
        theirs = upload(other, "a.png", PNG, "image/png")
    assert "There is no file" in send(workspace, new_session(workspace), in_file("image", theirs), expect=422)["detail"]


@pytest.mark.parametrize(
    ("model", "block", "why"),
    [
        ("lmstudio:any", PAPER, "lmstudio:any takes no documents"),
        ("lmstudio:any", at_url("image"), "lmstudio:any fetches no images from a URL"),
        ("openai:gpt-5", at_url("document"), "openai:gpt-5 fetches no documents from a URL"),
    ],
)
def test_a_model_that_does_not_take_it_is_named_at_once(
    workspace: Workspace, model: str, block: dict[str, Any], why: str
) -> None:
    session = new_session(workspace, model)
    problem = send(workspace, session, text("look"), block, expect=422)

    assert why in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/content/1"
    assert workspace.get(f"/v1/sessions/{session}/events")["data"] == []
    assert workspace.get("/v1/files")["data"] == []


def test_sending_it_again_stores_it_once(workspace: Workspace) -> None:
    session = new_session(workspace)
    body = {"content": [PICTURE], "client_event_id": "once"}
    first, second = (workspace.post(f"/v1/sessions/{session}/messages", body, expect=201) for _ in range(2))

    assert first["event"]["id"] == second["event"]["id"]
    assert len(workspace.get("/v1/files")["data"]) == 1


def test_a_question_is_answered_with_text(workspace: Workspace) -> None:
    ask = {"tools": [{"name": "ask_user", "input": {"question": "?"}}]}
    run = workspace.start(ask, {"text": "end"}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")

    assert "an answer, which is text" in run.command("input", {"content": [PICTURE]}, expect=422)["detail"]


def test_the_official_package_sends_and_reads_them(workspace: Workspace) -> None:
    sdk = anthropic.Anthropic(base_url=workspace.service.url, api_key=workspace.key, max_retries=0)
    session = new_session(workspace)
    with sdk:
        given: Any = [PICTURE, PAPER, NOTE, at_url("document")]
        sdk.beta.sessions.events.send(session, events=[{"type": "user.message", "content": given}])
        (event,) = [event for event in sdk.beta.sessions.events.list(session) if event.type == "user.message"]

    assert isinstance(event, types.BetaManagedAgentsUserMessageEvent)
    assert [type(block) for block in event.content] == [
        types.BetaManagedAgentsImageBlock,
        *[types.BetaManagedAgentsDocumentBlock] * 3,
    ]
    assert isinstance(event.content[0], types.BetaManagedAgentsImageBlock)
    assert isinstance(event.content[0].source, types.BetaManagedAgentsFileImageSource)
