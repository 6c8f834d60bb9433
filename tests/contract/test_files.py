"""Files given with the input, and artifacts: from the caller's disk to the agent's directory, and back."""

import hashlib
import io
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import pytest

from domain.errors import Unavailable
from domain.tools import Quota
from storage.database import Database, Transaction
from tests.files import CSV, directory, results, stored, upload, use
from tests.service import RunView, Workspace
from tests.tools.shells import WITH_BWRAP

TOOLS = ["read", "write", "edit", "publish_artifact"]


def publish(workspace: Workspace, content: str, **said: str | None) -> tuple[RunView, dict[str, Any]]:
    """A run that wrote a file and published it; the event."""
    written = use("write", file_path="report", content=content)
    run = workspace.start(written, use("publish_artifact", path="report", **said), {"text": "ok"}, tools=TOOLS)
    run.wait()
    (event,) = [event for event in run.events() if event["type"] == "agent.artifact"]
    return run, event


@pytest.fixture
def sdk(workspace: Workspace) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=workspace.service.url, auth_token=workspace.key, api_key=None, max_retries=0)


def test_the_official_package_uploads_lists_downloads_and_deletes(sdk: anthropic.Anthropic) -> None:
    made = sdk.beta.files.upload(file=("prices.csv", io.BytesIO(CSV), "text/csv"))

    assert (made.filename, made.mime_type, made.size_bytes, made.type) == ("prices.csv", "text/csv", len(CSV), "file")
    assert sdk.beta.files.retrieve_metadata(made.id) == made
    assert [file.id for file in sdk.beta.files.list()] == [made.id]
    assert sdk.beta.files.download(made.id).read() == CSV
    assert sdk.beta.files.delete(made.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sdk.beta.files.download(made.id)


def test_a_session_begins_with_its_files(workspace: Workspace, sdk: anthropic.Anthropic) -> None:
    one, two = upload(workspace)["id"], upload(workspace, b"two", "two.txt", "text/plain")["id"]
    agent = workspace.agent(tools=TOOLS)["id"]

    session = sdk.beta.sessions.create(
        agent=agent,
        environment_id="env_default",
        resources=[
            {"type": "file", "file_id": one},
            {"type": "file", "file_id": two, "mount_path": "/workspace/data/b.txt"},
        ],
    )
    assert [(r.type, getattr(r, "file_id", ""), getattr(r, "mount_path", "")) for r in session.resources] == [
        ("file", one, "/workspace/uploads/prices.csv"),
        ("file", two, "/workspace/data/b.txt"),
    ]
    assert workspace.get(f"/v1/sessions/{session.id}")["resources"][0]["file_id"] == one
    first = workspace.start(
        use("read", file_path="uploads/prices.csv"),
        use("read", file_path="data/b.txt"),
        use("edit", file_path="data/b.txt", old_string="two", new_string="2"),
        {"text": "ok"},
        agent=agent,
        session_id=session.id,
    )
    assert results(first)[:2] == ["name,price\nÄpfel,3", "two"]

    more = [{"type": "file", "file_id": two, "mount_path": "more.txt"}]
    steps = [use("read", file_path="more.txt"), use("read", file_path="data/b.txt"), {"text": "ok"}]
    second = workspace.start(*steps, agent=agent, session_id=session.id, resources=more)
    assert results(second) == ["two", "2"]  # what the agent changed is not put back


def test_a_run_of_its_own_begins_with_its_files(workspace: Workspace) -> None:
    file = upload(workspace)["id"]

    run = workspace.start(
        use("read", file_path="in.csv"),
        {"text": "ok"},
        tools=TOOLS,
        resources=[{"type": "file", "file_id": file, "mount_path": "in.csv"}],
    )

    assert results(run) == ["name,price\nÄpfel,3"]


def test_a_file_that_was_deleted_meanwhile_holds_up_nothing(workspace: Workspace) -> None:
    file = upload(workspace)["id"]
    session = workspace.post(
        "/v1/sessions", {"agent": workspace.agent(tools=TOOLS)["id"], "resources": [{"type": "file", "file_id": file}]}
    )
    assert workspace.http.delete(f"/v1/files/{file}").status_code == 200

    run = workspace.start(
        use("read", file_path="uploads/prices.csv"), {"text": "ok"}, session_id=session["id"], agent=session["agent"]["id"]
    )

    assert results(run) == ["uploads/prices.csv: no such file or folder"]


def test_an_artifact_is_a_copy_that_nothing_changes(workspace: Workspace) -> None:
    steps: list[dict[str, Any]] = [
        use("write", file_path="report.txt", content="first"),
        use("publish_artifact", path="report.txt", name="Bericht ü.txt", description="What I found"),
        use("write", file_path="report.txt", content="second"),
        use("publish_artifact", path="/workspace/report.txt"),
        {"text": "ok"},
    ]
    run = workspace.start(*steps, tools=TOOLS)
    session_id = run.wait()["session_id"]

    assert results(run)[1].startswith("Published Bericht ü.txt (5 bytes, text/plain) as artf_")
    types = run.types()
    assert types[types.index("agent.artifact") + 1] == "agent.tool_result"
    events = [event for event in run.events() if event["type"] == "agent.artifact"]
    listed = workspace.get(f"/v1/sessions/{session_id}/artifacts", order="asc")["data"]
    assert [artifact["id"] for artifact in listed] == [event["artifact_id"] for event in events]
    first = listed[0]
    assert {name: first[name] for name in ("name", "description", "media_type", "size_bytes", "sha256", "path", "run_id")} == {
        "name": "Bericht ü.txt",
        "description": "What I found",
        "media_type": "text/plain",
        "size_bytes": 5,
        "sha256": hashlib.sha256(b"first").hexdigest(),
        "path": "report.txt",
        "run_id": run.id,
    }
    contents = [workspace.http.get(f"/v1/artifacts/{artifact['id']}/content") for artifact in listed]
    assert [response.content for response in contents] == [b"first", b"second"]
    headers = contents[0].headers
    assert headers["content-type"] == "text/plain"
    assert headers["content-disposition"] == "attachment; filename=\"Bericht _.txt\"; filename*=UTF-8''Bericht%20%C3%BC.txt"
    page = workspace.get(f"/v1/sessions/{session_id}/artifacts", limit=1)
    assert page["data"][0]["id"] == listed[1]["id"]
    following = workspace.get(f"/v1/sessions/{session_id}/artifacts", limit=1, page=page["next_page"])
    assert (following["data"][0]["id"], following["next_page"]) == (first["id"], None)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("evil.html", "text/html"),
        ("evil.svg", "image/svg+xml"),
        ('"; x=y\r\nSet-Cookie: a=b', None),
        ("../../etc/passwd", None),
    ],
)
def test_nothing_is_shown_in_the_browser(workspace: Workspace, name: str, media_type: str | None) -> None:
    _, event = publish(workspace, "<script>alert(1)</script>", name=name, media_type=media_type)

    response = workspace.http.get(f"/v1/artifacts/{event['artifact_id']}/content")

    assert response.headers["content-disposition"].startswith('attachment; filename="')
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert "set-cookie" not in response.headers
    assert "/" not in event["name"]
    assert response.headers["content-type"] == (media_type or "application/octet-stream")


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-3", 206, b"name"),
        ("bytes=-4", 206, CSV[-4:]),
        ("bytes=5-", 206, CSV[5:]),
        ("bytes=3-1", 200, CSV),
        ("bytes=0-1,3-4", 200, CSV),
        ("lines=1-2", 200, CSV),
        ("bytes=999-", 416, b""),
        ("bytes=-0", 416, b""),
    ],
)
def test_ranges(workspace: Workspace, asked: str, status: int, content: bytes) -> None:
    response = workspace.http.get(f"/v1/files/{upload(workspace)['id']}/content", headers={"Range": asked})

    assert response.status_code == status
    if status == 416:
        assert response.json()["code"] == "range_not_satisfiable"
    else:
        assert response.content == content
    if status == 206:
        assert response.headers["content-range"].endswith(f"/{len(CSV)}")


def test_a_name_is_what_is_left_of_it(workspace: Workspace) -> None:
    assert upload(workspace, name="C:\\Users\\me\\ü b.csv")["filename"] == "ü b.csv"
    assert upload(workspace, name="../../x.bin", media_type="no type")["mime_type"] == "application/octet-stream"
    assert upload(workspace, name="a.json", media_type="application/octet-stream")["mime_type"] == "application/json"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {"file": "x"}}, 422),
        ({"data": {"file": "x"}}, 422),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 422),
        ({"content": b"--b\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 422),
        ({"files": {"other": ("a", b"x")}}, 422),
        ({"files": {"file": ("a", b"x")}, "data": {"expires_in_seconds": "3600"}}, 422),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))]}, 422),
    ],
)
def test_an_upload_that_is_none_is_refused(workspace: Workspace, request_: Mapping[str, Any], status: int) -> None:
    response = workspace.http.post("/v1/files", **request_)

    assert response.status_code == status, response.text
    assert workspace.get("/v1/files")["data"] == []


def test_an_upload_with_a_key_is_made_once(workspace: Workspace) -> None:
    def again(content: bytes) -> httpx2.Response:
        return workspace.http.post("/v1/files", files={"file": ("a.txt", content)}, headers={"Idempotency-Key": "k"})

    first, second, other = again(b"one"), again(b"one"), again(b"two")

    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(workspace.get("/v1/files")["data"]) == 1
    (kept,) = stored(workspace, first.json()["id"])
    assert os.listdir(kept.parent) == [kept.name]


def test_an_upload_whose_commit_was_not_answered_is_there_when_it_is_sent_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Database.write

    @asynccontextmanager
    async def lost(self: Database) -> AsyncGenerator[Transaction]:
        async with write(self) as transaction:
            yield transaction
        raise Unavailable("The connection broke.")

    def send() -> httpx2.Response:
        return workspace.http.post("/v1/files", files={"file": ("a.txt", b"one")}, headers={"Idempotency-Key": "k"})

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", lost)
        assert send().status_code == 503

    again = send()
    assert again.headers["idempotent-replayed"] == "true"
    assert workspace.http.get(f"/v1/files/{again.json()['id']}/content").content == b"one"


def test_what_is_too_large_is_refused_and_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.service.parts.files, "max_file_bytes", 1 << 20)
    large = b"x" * ((1 << 20) + 1)

    def pieces() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(3):
            yield large

    chunked = workspace.http.post("/v1/files", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    for response in (workspace.http.post("/v1/files", files={"file": ("a", large)}), chunked):
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
    mine = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    assert workspace.get("/v1/files")["data"] == []
    assert mine
    upload(workspace, large[:-1])


@WITH_BWRAP
def test_the_quota_holds_for_every_way_in(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.service.parts.files, "quota", Quota(bytes=1 << 20))
    large = upload(workspace, b"x" * (2 << 20), "large.bin", "application/octet-stream")["id"]
    bash = {"type": "function", "name": "bash", "permission_policy": {"type": "always_allow"}}
    run = workspace.start(
        use("read", file_path="large.bin"),
        use("write", file_path="a", content="x" * 300_000),
        use("bash", command="head -c 500000 /dev/zero > b; echo ok"),
        use("write", file_path="c", content="x" * 300_000),
        use("bash", command="for n in 1 2 3 4; do head -c 900000 /dev/zero > $n; done; sleep 30"),
        use("bash", command="rm [0-9] a; ls"),
        use("write", file_path="c", content="x" * 300_000),
        {"text": "ok"},
        tools=[*TOOLS, bash],
        resources=[{"type": "file", "file_id": large, "mount_path": "large.bin"}],
    )

    given, first, shell, second, too_much, listed, third = results(run)
    assert given == "large.bin: no such file or folder"
    assert (shell, listed) == ("ok\n", "b\n")
    assert first == third.replace("c", "a")
    assert second.startswith("c: your directory is full (1 MB")
    assert "wrote more than your directory holds (1 MB)" in too_much


@pytest.mark.parametrize(
    ("resource", "pointer"),
    [
        ({"type": "file", "file_id": "file_none"}, "/resources/0/file_id"),
        ({"type": "file", "file_id": "{file}", "mount_path": "../up"}, "/resources/0/mount_path"),
        ({"type": "file", "file_id": "{file}", "mount_path": "/etc/passwd"}, "/resources/0/mount_path"),
        ({"type": "file", "file_id": "{file}", "mount_path": ".perdure/x"}, "/resources/0/mount_path"),
        ({"type": "file", "file_id": "{file}", "mount_path": "/workspace/"}, "/resources/0/mount_path"),
        ({"type": "github_repository", "url": "x"}, "/resources/0/type"),
    ],
)
def test_a_resource_that_cannot_be_is_refused(workspace: Workspace, resource: dict[str, str], pointer: str) -> None:
    file = upload(workspace)["id"]
    resource = json.loads(json.dumps(resource).replace("{file}", file))
    agent = workspace.agent()["id"]

    for path, body in (("/v1/sessions", {"agent": agent}), ("/v1/runs", {"agent": agent, "input": "x"})):
        problem = workspace.post(path, {**body, "resources": [resource]}, expect=422)
        assert pointer in {fault["pointer"] for fault in problem["errors"]}, problem
    same = {"type": "file", "file_id": file, "mount_path": "x"}
    problem = workspace.post("/v1/sessions", {"agent": agent, "resources": [same, same]}, expect=422)
    assert problem["errors"][0]["pointer"] == "/resources/1/mount_path"


def test_a_name_that_is_too_long_for_the_disk_needs_another_path(workspace: Workspace) -> None:
    file = upload(workspace, name="表" * 100 + ".csv")["id"]
    resource = {"type": "file", "file_id": file}
    agent = workspace.agent(tools=TOOLS)["id"]
    problem = workspace.post("/v1/sessions", {"agent": agent, "resources": [resource]}, expect=422)
    assert problem["errors"][0]["pointer"] == "/resources/0/mount_path"

    run = workspace.start(
        use("read", file_path="in.csv"), {"text": "ok"}, agent=agent, resources=[{**resource, "mount_path": "in.csv"}]
    )

    assert results(run) == ["name,price\nÄpfel,3"]


def test_what_is_another_workspaces_does_not_exist(workspace: Workspace) -> None:
    file = upload(workspace)["id"]
    run, event = publish(workspace, "mine")
    session_id = run.row["session_id"]
    with workspace.service.workspace() as other:
        for path in (
            f"/v1/files/{file}",
            f"/v1/files/{file}/content",
            f"/v1/artifacts/{event['artifact_id']}/content",
            f"/v1/sessions/{session_id}/artifacts",
        ):
            assert other.http.get(path).status_code == 404, path
        assert other.http.delete(f"/v1/files/{file}").status_code == 404
        assert other.get("/v1/files")["data"] == []
        agent = other.agent()["id"]
        other.post("/v1/sessions", {"agent": agent, "resources": [{"type": "file", "file_id": file}]}, expect=422)
    assert workspace.http.get(f"/v1/files/{file}/content").content == CSV


def test_a_deleted_session_takes_its_files_along(workspace: Workspace) -> None:
    run, event = publish(workspace, "mine")
    session_id = run.row["session_id"]
    assert (directory(workspace, session_id) / "report").exists()
    assert stored(workspace, event["artifact_id"])

    assert workspace.http.delete(f"/v1/sessions/{session_id}").status_code == 200

    assert not list(workspace.service.parts.files.root.glob(f"*/{session_id}"))
    assert stored(workspace, event["artifact_id"]) == []
    assert workspace.http.get(f"/v1/artifacts/{event['artifact_id']}/content").status_code == 404


def test_what_is_no_file_is_not_published(workspace: Workspace) -> None:
    steps = [use("publish_artifact", path="none.txt"), use("publish_artifact", path="../x"), use("publish_artifact", path=".")]

    run = workspace.start(*steps, use("publish_artifact", path="x", media_type="nonsense"), {"text": "ok"}, tools=TOOLS)

    said = results(run)
    assert said[0] == "none.txt: no such file or folder"
    assert "must not contain .." in said[1]
    assert "it is a folder" in said[2]
    assert "media type" in said[3]
    assert "agent.artifact" not in run.types()
