"""`perdure sessions` against the real service."""

import json
import sys
from pathlib import Path
from typing import Protocol

import pytest

import cli
from tests.service import RunView, Workspace


class Perdure(Protocol):
    def __call__(self, *arguments: str, expect: int = 0) -> str: ...


@pytest.fixture
def perdure(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Perdure:
    """The command in this process, in a folder of its own: what it says, or why it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_URL", workspace.service.url)
    monkeypatch.setenv("PERDURE_API_KEY", workspace.key)

    def perdure(*arguments: str, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["perdure", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == expect, (out, err)
        return out if expect == 0 else err

    return perdure


def test_a_message_to_a_busy_session_does_as_it_is_told(perdure: Perdure, workspace: Workspace) -> None:
    run = workspace.start({"text": "", "words": 2_000, "delay_ms": 20})
    session = run.until(lambda row: row["status"] == "running")["session_id"]
    again = json.dumps({"script": [{"text": "At once."}]})

    assert "still running" in perdure("run", again, "--session", session, "--on-busy", "reject", expect=2)
    assert "--on-busy is for a --session" in perdure("run", again, "--on-busy", "steer", expect=2)
    assert perdure("run", again, "--session", session, "--on-busy", "interrupt") == "At once.\n"
    assert run.wait()["status"] == "cancelled"


def test_a_conversation_is_paused_resumed_and_interrupted(perdure: Perdure, workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    perdure("sessions", "pause", session)
    long = json.dumps({"script": [{"text": "", "words": 2_000, "delay_ms": 20}]})
    run = RunView(workspace, workspace.post(f"/v1/sessions/{session}/messages", {"content": long})["run"]["id"])
    assert workspace.get(f"/v1/sessions/{session}")["paused"] is True
    perdure("sessions", "resume", session)
    run.until(lambda row: row["status"] == "running")
    perdure("sessions", "interrupt", session)
    assert run.wait()["status"] == "cancelled"
    assert "No session" in perdure("sessions", "pause", "sesn_nothing", expect=2)


def test_a_conversation_goes_to_a_file_and_comes_back(perdure: Perdure, workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.start({"text": "Said."}).wait()
    session_id = run["session_id"]
    perdure("sessions", "export", session_id, "-o", "it.json")
    imported = perdure("sessions", "import", "it.json", "--agent", workspace.agent(name="mine")["name"]).strip()
    assert workspace.get(f"/v1/sessions/{imported}")["last_message"]["text"] == "Said."
    assert json.loads(perdure("sessions", "export", imported))["events"]
    assert "> Said." in perdure("sessions", "export", imported, "--markdown")

    again = json.dumps({"script": [{"text": "Otherwise."}]})
    (message,) = workspace.get(f"/v1/sessions/{session_id}/events", types=["user.message"])["data"]
    forked = perdure("sessions", "fork", session_id, "--before", message["id"], "--message", again).strip()
    (started,) = workspace.get("/v1/runs", session_id=forked)["data"]
    assert RunView(workspace, started["id"]).wait()["output"] == "Otherwise."

    assert "No session" in perdure("sessions", "export", "sesn_nothing", expect=2)
    (tmp_path / "broken.json").write_text(json.dumps({"type": "perdure.session", "version": 1}))
    assert "/session" in perdure("sessions", "import", "broken.json", expect=2)
    assert "cannot be read" in perdure("sessions", "import", "nothing.json", expect=2)
