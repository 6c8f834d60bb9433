"""The command line against the real service."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import cli
from tests.commands.proxy import cutting_proxy
from tests.service import Workspace
from tests.test_subagents import delegate, team

ROOT = Path(cli.__file__).parent
WAITS = {"text": "", "words": 400, "delay_ms": 20}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Perdure = Callable[..., Ended]


@pytest.fixture
def perdure(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Perdure:
    """Runs a command in this process with the workspace's key; checks the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_URL", workspace.service.url)
    monkeypatch.setenv("PERDURE_API_KEY", workspace.key)

    def run(*arguments: str, expect: int = 0) -> Ended:
        monkeypatch.setattr(sys, "argv", ["perdure", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code or 0
        assert code == expect, (code, out, err)
        assert isinstance(code, int)
        return Ended(code, out, err)

    return run


def script(*steps: Mapping[str, object]) -> str:
    return json.dumps({"script": list(steps)})


def test_help_imports_nothing_heavy() -> None:
    heavy = ("httpx2", "rich", "pydantic", "settings", "temporalio", "fastapi", "sqlalchemy", "yaml")
    code = f"import sys, cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_run_that_completes_and_one_that_does_not(perdure: Perdure) -> None:
    done = perdure("run", script({"thinking": "Hm.", "text": "The answer."}), "--model", "demo:script")
    assert done.out == "The answer.\n"
    assert "Hm." in done.err

    failing = script({"text": "x", "fail": {"code": "auth", "message": "no key here"}})
    failed = perdure("run", failing, "--model", "demo:script", expect=1)
    assert failed.out == ""
    assert "failed: provider_auth: no key here" in failed.err


def test_json_prints_every_durable_event_once_in_order(perdure: Perdure) -> None:
    ended = perdure("run", script({"text": "", "words": 40, "delay_ms": 5}), "--model", "demo:script", "--json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run.completed"
    assert ended.err == ""


def test_refusals_are_told_and_exit_with_2(perdure: Perdure, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No agent is named 'nobody'" in perdure("run", "hi", "--agent", "nobody", expect=2).err
    assert "provider:name" in perdure("run", "hi", "--model", "demo", expect=2).err
    assert "Known: demo:demo" in perdure("run", "hi", "--model", "demo:nothing", expect=2).err
    assert "run_nothing" in perdure("runs", "get", "run_nothing", expect=2).err
    perdure("run", " ", expect=2)
    perdure("run", "hi", "--agent", "a", "--session", "sesn_1", expect=2)
    monkeypatch.setenv("PERDURE_API_KEY", "pdr_wrong")
    assert "Set PERDURE_API_KEY" in perdure("runs", "list", expect=2).err


def test_a_run_is_commanded(perdure: Perdure, workspace: Workspace) -> None:
    run = workspace.start(WAITS)
    run.until(lambda row: row["status"] == "running")
    perdure("runs", "pause", run.id, "--now")
    run.until(lambda row: row["status"] == "paused")
    assert perdure("runs", "list", "--status", "paused").out.splitlines()[1].startswith(f"{run.id}\tpaused\t")
    perdure("runs", "resume", run.id)
    run.until(lambda row: row["status"] != "paused")
    run.wait()
    assert "completed" in perdure("runs", "get", run.id).out

    other = workspace.start(WAITS, WAITS)
    perdure("runs", "cancel", other.id, "--reason", "enough")
    assert other.wait()["status"] == "cancelled"
    assert "cancelled: enough" in perdure("runs", "logs", other.id, "--follow", expect=1).err
    assert re.search(r"run\.cancelled +reason=enough", perdure("runs", "logs", other.id).out)
    assert "run_finished" in workspace.post(f"/v1/runs/{other.id}/pause", expect=409)["code"]
    assert "over" in perdure("runs", "pause", other.id, expect=2).err
    perdure("runs", "retry", other.id)
    perdure("runs", "terminate", other.id)
    assert other.wait()["status"] == "terminated"
    assert json.loads(perdure("runs", "get", other.id, "--json").out)["attempt"] == 2


def test_a_waiting_run_is_answered(perdure: Perdure, workspace: Workspace) -> None:
    ask = {"tools": [{"name": "ask_user", "input": {"question": "Which colour?"}}]}
    run = workspace.start(ask, {"text": "Thanks."}, tools=["ask_user"])
    run.until(lambda row: row["status"] == "waiting")
    assert "waiting for input" in perdure("runs", "get", run.id).out
    perdure("runs", "input", run.id, "blue")
    assert run.wait()["status"] == "completed"
    followed = perdure("runs", "logs", run.id, "--follow")
    assert followed.out == "Thanks.\n"
    assert "? Which colour?" in followed.err
    assert "→ blue" in followed.err


def test_a_conversation(perdure: Perdure, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = workspace.agent(model="demo:echo", tools=["ask_user"])
    question = {"tools": [{"name": "ask_user", "input": {"question": "Which colour?"}}]}
    ask = script(question, {"text": "Noted."}, {"text": "Again."})
    lines = ["first", "", ask, "blue", "/quit", "never sent"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    ended = perdure("chat", "--agent", agent["id"])
    assert ended.out == "first\nNoted.\n"
    assert "? Which colour?" in ended.err

    session = re.findall(r"sesn_\w+", ended.err)[-1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("again"))
    assert perdure("chat", "--session", session).out == "Again.\n"
    messages = [e for e in workspace.get(f"/v1/sessions/{session}/events", limit=100)["data"] if e["type"] == "user.message"]
    assert [message["content"][0]["text"] for message in messages] == ["first", ask, "again"]


def test_a_sub_agents_question_is_answered_in_a_conversation_and_its_text_is_no_answer(
    perdure: Perdure, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"tools": [{"name": "ask_user", "input": {"question": "Which colour?"}}]}
    lead = team(workspace, "asker")
    ask = script({"tools": [delegate("asker", question, {"text": "It is noted."})]}, {"text": "Thanks."})
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{ask}\nblue"))
    ended = perdure("chat", "--agent", lead)
    assert ended.out == "Thanks.\n"
    assert "It is noted." in ended.err
    session = re.findall(r"sesn_\w+", ended.err)[-1]
    answers = [e for e in workspace.get(f"/v1/sessions/{session}/events", limit=100)["data"] if e["type"] == "user.answer"]
    assert [answer["content"][0]["text"] for answer in answers] == ["blue"]


def test_conversations_are_named_and_put_away(perdure: Perdure, workspace: Workspace) -> None:
    agent = workspace.agent(name="talker", model="demo:echo")["id"]
    one, two = (workspace.post("/v1/sessions", {"agent": agent})["id"] for _ in range(2))

    def listed(*options: str) -> list[str]:
        rows = [line.split("\t") for line in perdure("sessions", "list", *options).out.splitlines()[1:]]
        return [f"{row[0]} {row[1]} {row[2]} {row[-1]}" for row in rows]

    assert perdure("sessions", "rename", one, "Trip to Ghent").out == f"{one} renamed\n"
    assert listed() == [f"{two} idle talker v1 ", f"{one} idle talker v1 Trip to Ghent"]
    perdure("sessions", "rename", one, "")
    perdure("sessions", "archive", two)
    assert listed() == [f"{one} idle talker v1 "]
    assert listed("--archived")[0] == f"{two} archived talker v1 "
    perdure("sessions", "delete", two)
    assert listed("--archived") == [f"{one} idle talker v1 "]
    assert "No session" in perdure("sessions", "delete", two, expect=2).err


def test_agents_are_applied_from_files(perdure: Perdure, tmp_path: Path) -> None:
    metadata = {"team": "a", "tier": "1"}
    writer: dict[str, object] = {"name": "writer", "model": "demo:demo", "tools": ["write"], "metadata": metadata}
    reader: dict[str, object] = {"name": "reader", "model": {"id": "demo:echo"}, "limits": {"max_steps": 3}}
    file = tmp_path / "agents.yaml"

    def apply(*documents: dict[str, object]) -> list[str]:
        file.write_text(yaml.safe_dump_all(documents))
        return [re.sub(r" agent_\w+", "", line) for line in perdure("agents", "apply", "-f", str(file)).out.splitlines()]

    assert apply(writer, reader) == ["writer v1 created", "reader v1 created"]
    assert apply(writer, reader) == ["writer v1 unchanged", "reader v1 unchanged"]
    assert apply({**writer, "metadata": {"team": "b"}}, reader) == ["writer v2 updated", "reader v1 unchanged"]
    assert json.loads(perdure("agents", "get", "writer").out)["metadata"] == {"team": "b"}
    assert [line.split("\t")[2] for line in perdure("agents", "versions", "writer").out.splitlines()] == ["version", "2", "1"]
    assert "v3 says what v1 said" in perdure("agents", "rollback", "writer", "1").out
    assert json.loads(perdure("agents", "get", "writer").out)["metadata"] == {"team": "a", "tier": "1"}
    assert {line.split("\t")[1] for line in perdure("agents", "list").out.splitlines()} == {"name", "writer", "reader"}
    assert perdure("run", "one two", "--agent", "reader").out == "one two\n"

    file.write_text("name: third\nmodel: demo:demo\n---\nname: fourth\nmodel: nonsense\ntolls: []\n")
    refused = perdure("agents", "apply", "-f", str(file), expect=2).err
    assert "agent 2, model.id: a model is written provider:name" in refused
    assert "agent 2, tolls: Extra inputs are not permitted" in refused
    assert "third" not in perdure("agents", "list").out, "nothing of a faulty file is applied"


def test_lists_that_take_no_limit_are_whole(perdure: Perdure, workspace: Workspace) -> None:
    agent = workspace.agent()
    for number in range(21):
        workspace.post("/v1/api_keys", {"name": f"key {number}"})
        workspace.post(f"/v1/agents/{agent['id']}", {"version": number + 1, "system": str(number)})
    assert len(perdure("keys", "list").out.splitlines()) == 1 + 1 + 21
    assert len(perdure("agents", "versions", agent["name"]).out.splitlines()) == 1 + 22


def test_keys_are_made_used_and_revoked(perdure: Perdure, monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    key = perdure("keys", "create", "--name", "reader", "--scope", "runs:read").out.strip()
    id = next(line.split("\t")[0] for line in perdure("keys", "list").out.splitlines() if "\treader\t" in line)
    monkeypatch.setenv("PERDURE_API_KEY", key)
    perdure("runs", "list")
    assert "keys:write" in perdure("keys", "list", expect=2).err
    monkeypatch.setenv("PERDURE_API_KEY", workspace.key)
    perdure("keys", "revoke", id)
    monkeypatch.setenv("PERDURE_API_KEY", key)
    perdure("runs", "list", expect=2)


def test_the_doctor(perdure: Perdure, monkeypatch: pytest.MonkeyPatch) -> None:
    well = perdure("doctor").out
    assert "ok    key: accepted" in well
    assert "ok    ready: database ok, migrations ok, temporal ok, live bus ok" in well
    assert "FAIL" not in well
    monkeypatch.setenv("PERDURE_API_KEY", "pdr_wrong")
    assert "FAIL  key: Not authenticated" in perdure("doctor", expect=1).out
    monkeypatch.setenv("PERDURE_URL", "http://127.0.0.1:1")
    assert "FAIL  service: No Perdure answers at http://127.0.0.1:1" in perdure("doctor", expect=1).out


def test_on_a_terminal_a_broken_connection_leaves_no_gap_and_no_repeat(workspace: Workspace, tmp_path: Path) -> None:
    """Every tenth word of the filler is its own number."""
    run = workspace.start({"thinking": "Hm, hm.", "text": "", "words": 400, "delay_ms": 20})
    with cutting_proxy(workspace.service.settings.port, cuts=(6_000, 9_000, 12_000)) as proxy:
        code, shown = _on_terminal(proxy.url, workspace.key, tmp_path, ["runs", "logs", run.id, "--follow"])
        assert proxy.cuts_made == 3
    written = run.wait()["output"]
    assert code == 0, shown
    assert shown.count("⟳ connection lost") == 3
    # The connection broke in the middle of a word perhaps: what stands there is compared without spaces.
    story = re.sub(r"⟳ connection lost[^\n]*\n", "", shown)
    assert "".join(str(written).split()) in "".join(story.split())
    assert story.count("\nHm, hm.\n") == 1


def test_ctrl_c_leaves_the_run_running(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.start(WAITS)
    argv = ["runs", "logs", run.id, "--follow"]
    code, shown = _on_terminal(workspace.service.url, workspace.key, tmp_path, argv, interrupt_at="word")
    assert code == 130, shown
    assert f"perdure runs logs {run.id} --follow" in shown
    assert run.row["status"] == "running"
    run.command("cancel")
    run.wait()


def _on_terminal(url: str, key: str, folder: Path, argv: list[str], *, interrupt_at: str | None = None) -> tuple[int, str]:
    """Exit code, and what was written to the terminal without colours and progress."""
    environment = {
        **os.environ,
        "PERDURE_URL": url,
        "PERDURE_API_KEY": key,
        "PERDURE_DATA_DIR": str(folder),
        "TERM": "xterm-256color",
    }
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *argv], stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment
    )
    os.close(slave)
    written, deadline = "", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other side has closed
                break
            written += piece.decode(errors="replace")
            if interrupt_at is not None and interrupt_at in written:
                interrupt_at = None
                process.send_signal(signal.SIGINT)
        code = process.wait(10)
    finally:
        process.kill()
        os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.replace("\r", "\n"))
    return code, "\n".join(line for line in plain.split("\n") if line.strip() and not re.match(r"[⠀-⣿] ", line))


def test_the_example_of_sub_agents_is_applied_in_order_and_runs(perdure: Perdure, workspace: Workspace) -> None:
    folder = ROOT / "examples" / "agents"

    applied = perdure("agents", "apply", "-f", str(folder / "research.yaml")).out.splitlines()
    assert [line.split()[0] for line in applied] == ["deep-research", "quick-lookup", "synthesis", "research"]
    assert all(line.endswith(" created") for line in applied)
    again = perdure("agents", "apply", "-f", str(folder / "research.yaml")).out.splitlines()
    assert all(line.endswith(" unchanged") for line in again)

    ended = perdure("run", "--agent", "research", (folder / "research.script.json").read_text())

    assert "in the Bay of Fundy they reach 16 metres" in ended.out
    (run,) = workspace.get("/v1/runs", status="completed", agent_id=applied[-1].split()[1])["data"]
    below = workspace.get("/v1/runs", parent_run_id=run["id"])["data"]
    assert {row["agent"]["name"]: row["status"] for row in below} == {
        "deep-research": "completed",
        "quick-lookup": "completed",
        "synthesis": "completed",
    }
