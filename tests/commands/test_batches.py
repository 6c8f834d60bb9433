"""`perdure batch` against the real service."""

import json
from pathlib import Path

from tests.commands.test_cli import Perdure
from tests.commands.test_cli import perdure as perdure  # the fixture
from tests.service import Workspace
from tests.test_batches import FAILS, says


def test_a_file_of_inputs_becomes_a_file_of_results(perdure: Perdure, workspace: Workspace, tmp_path: Path) -> None:
    agent = workspace.agent()["name"]
    inputs = [says("one"), {"input": says("two"), "custom_id": "b"}, [{"type": "text", "text": says("three\u2028")}]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in inputs))
    ended = perdure("batch", "run", "in.jsonl", "--agent", agent, "--at-once", "2")
    lines = [json.loads(line) for line in ended.out.rstrip("\n").split("\n")]
    assert [(line["output"], line["custom_id"]) for line in lines] == [("one", None), ("two", "b"), ("three\u2028", None)]
    assert "3 completed" in ended.err
    batch = ended.err.split()[0]
    assert perdure("batch", "results", batch).out == ended.out
    assert "is completed" in perdure("batch", "cancel", batch, expect=2).err


def test_what_did_not_complete_and_what_cannot_be_read(perdure: Perdure, workspace: Workspace, tmp_path: Path) -> None:
    agent = workspace.agent()["name"]
    (tmp_path / "in.jsonl").write_text(json.dumps(FAILS) + "\n")
    assert '"status":"failed"' in perdure("batch", "run", "in.jsonl", "--agent", agent, expect=1).out
    (tmp_path / "bad.jsonl").write_text('"fine"\n{no}\n')
    assert "line 2 is no JSON" in perdure("batch", "run", "bad.jsonl", "--agent", agent, expect=2).err
    assert "cannot be read" in perdure("batch", "run", "none.jsonl", "--agent", agent, expect=2).err
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "has no inputs" in perdure("batch", "run", "empty.jsonl", "--agent", agent, expect=2).err
    (tmp_path / "fault.jsonl").write_text('"fine"\n{"input": "a", "custom": 1}\n')
    assert "/inputs/1/custom" in perdure("batch", "run", "fault.jsonl", "--agent", agent, expect=2).err
