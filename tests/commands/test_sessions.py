"""`perdure sessions` against the real service."""

import json
import sys
from pathlib import Path

import pytest

import cli
from tests.service import RunView, Workspace


def test_a_conversation_goes_to_a_file_and_comes_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_URL", workspace.service.url)
    monkeypatch.setenv("PERDURE_API_KEY", workspace.key)

    def perdure(*arguments: str, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["perdure", "sessions", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == expect, (out, err)
        return out if expect == 0 else err

    run = workspace.start({"text": "Said."}).wait()
    session_id = run["session_id"]
    perdure("export", session_id, "-o", "it.json")
    imported = perdure("import", "it.json", "--agent", workspace.agent(name="mine")["name"]).strip()
    assert workspace.get(f"/v1/sessions/{imported}")["last_message"]["text"] == "Said."
    assert json.loads(perdure("export", imported))["events"]
    assert "> Said." in perdure("export", imported, "--markdown")

    again = json.dumps({"script": [{"text": "Otherwise."}]})
    (message,) = workspace.get(f"/v1/sessions/{session_id}/events", types=["user.message"])["data"]
    forked = perdure("fork", session_id, "--before", message["id"], "--message", again).strip()
    (started,) = workspace.get("/v1/runs", session_id=forked)["data"]
    assert RunView(workspace, started["id"]).wait()["output"] == "Otherwise."

    assert "No session" in perdure("export", "sesn_nothing", expect=2)
    (tmp_path / "broken.json").write_text(json.dumps({"type": "perdure.session", "version": 1}))
    assert "/session" in perdure("import", "broken.json", expect=2)
    assert "cannot be read" in perdure("import", "nothing.json", expect=2)
