"""The shell tool through the front door: an agent's commands, in a service's own sandbox."""

import os
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.service import ServiceThread, Workspace
from tests.tools.shells import MARKS, alive, until

pytestmark = MARKS

BASH_ONLY = [
    {
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": False},
        "configs": [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_allow"}}],
    }
]


def test_an_agent_runs_a_command(workspace: Workspace) -> None:
    run = workspace.start(
        {"tools": [{"name": "bash", "input": {"command": "pwd; echo $((6 * 7))"}}]}, {"text": "ok"}, tools=BASH_ONLY
    )

    assert run.wait()["status"] == "completed"
    (result,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
    assert (result["content"][0]["text"], result["is_error"]) == ("/workspace\n42\n", False)
    assert "agent.tool_started" in run.types()


def test_a_cancelled_run_leaves_no_process(workspace: Workspace) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"
    script = {"tools": [{"name": "bash", "input": {"command": f"(setsid sleep {marker} &); sleep {marker}"}}]}
    run = workspace.start(script, tools=BASH_ONLY)
    until(lambda: len([p for p in alive(marker) if p.name() == "sleep"]) == 2)

    run.command("cancel")

    assert run.wait()["status"] == "cancelled"
    assert alive(marker) == []
    (result,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
    assert "whether it had an effect is unknown" in result["content"][0]["text"]


def test_the_network_is_the_operators_to_allow(workspace: Workspace) -> None:
    def with_network(**config: object) -> dict[str, object]:
        toolset = {"type": "agent_toolset_20260401", "configs": [{"enabled": True, "network": True, **config}]}
        return {"name": "a", "model": "demo:echo", "tools": [toolset]}

    refused = workspace.post("/v1/agents", with_network(name="bash"), expect=422)
    assert "[tools.shell] network" in refused["detail"]
    refused = workspace.post("/v1/agents", with_network(name="read"), expect=422)
    assert refused["errors"][0]["pointer"] == "/tools/0/configs/0/network"
    allowed = workspace.post("/v1/agents", with_network(name="bash", network=False), expect=201)
    assert allowed["tools"][0]["configs"][0] == {
        "type": "bash", "name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}
    }  # fmt: skip


@pytest.mark.skipif(not os.access("/usr/local", os.W_OK), reason="the tests may not write below /usr")
def test_a_service_below_usr_hides_its_data_folder() -> None:
    with TemporaryDirectory(dir="/usr/local") as home:
        data = Path(home) / "data"
        with ServiceThread(data, None) as service, service.workspace() as workspace:
            for folder in (data.parent, data):
                folder.chmod(0o755)
            look = {"tools": [{"name": "bash", "input": {"command": f"ls -A {home}; ls -A {data}"}}]}
            run = workspace.start(look, {"text": "ok"}, tools=BASH_ONLY)
            assert run.wait()["status"] == "completed"
            (result,) = [event for event in run.events() if event["type"] == "agent.tool_result"]
            assert (data / "perdure.db").exists()
    assert result["content"][0]["text"] == "data\n"


def said(workspace: Workspace, *commands: str) -> list[tuple[str, bool]]:
    """What the model is told of the commands, one after the other."""
    steps = [{"tools": [{"name": "bash", "input": {"command": command}}]} for command in commands]
    run = workspace.start(*steps, {"text": "ok"}, tools=BASH_ONLY)
    assert run.wait()["status"] == "completed"
    return [(e["content"][0]["text"], e["is_error"]) for e in run.events() if e["type"] == "agent.tool_result"]


def test_without_bubblewrap_the_model_is_told_why_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServiceThread(tmp_path / "data", None) as service, service.workspace() as workspace:
        with monkeypatch.context() as missing:
            missing.setenv("PATH", str(tmp_path))
            ((refusal, is_error),) = said(workspace, "echo ran > ran")
        assert is_error
        assert refusal.startswith("The shell is not available, and nothing was run. bubblewrap is not installed")
        assert list(service.settings.files.rglob("ran")) == []
        assert said(workspace, "echo now") == [("now\n", False)]  # it is tried again, not remembered


def test_without_a_sandbox_only_where_the_operator_names_it(tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text('[tools.shell]\nsandbox = "none"\ntimeout_seconds = 1.5\n')
    with ServiceThread(tmp_path, None) as service, service.workspace() as workspace:
        (where, _), (late, is_error) = said(workspace, "pwd", "echo begun; sleep 30")
        assert where.startswith(str(service.settings.files))
        assert (late, is_error) == ("begun\n[The command took longer than 1.5 seconds and was stopped.]", True)
