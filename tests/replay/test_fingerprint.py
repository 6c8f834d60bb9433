"""An edit of what a run's commands depend on is named, before a replay fails or, worse, happens not to."""

import shutil
from pathlib import Path

import pytest

from tests.replay.fingerprint import ROOT, SOURCES, edited

pytestmark = pytest.mark.single_database

WHAT_TO_DO = """edited since the fingerprints were recorded: {places}
Runs that are under way replay this code from their beginning. So:
1. Does it change which commands a run gives, or in which order, for data that a run under way may hold?
   Then keep the old way as well: `if workflow.patched("YYYY-MM-DD-what"): …`.
2. Add a history of the new way (tests/replay/record.py; never record an old one anew), and see that all replay:
   python -m pytest tests/replay
3. Record the new fingerprints, which replays once more: python -m tests.replay.fingerprint"""


def test_nothing_that_a_run_depends_on_was_edited_unawares() -> None:
    places = edited()
    assert places == [], WHAT_TO_DO.format(places=", ".join(places))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for source in SOURCES:
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    return tmp_path


def change(copy: Path, source: str, old: str, new: str) -> None:
    text = (copy / source).read_text()
    assert old in text
    (copy / source).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("source", "old", "new", "place"),
    [
        ("workflows/agent_run.py", 'elif step.stop == "tool_use":', 'elif step.stop == "continue":', "AgentRun._steps"),
        (
            "workflows/agent_run.py",
            "timeout=timedelta(seconds=10)",
            "timeout=timedelta(seconds=9)",
            "AgentRun._why_interrupted",
        ),
        (
            "workflows/agent_run.py",
            "@workflow.signal\n    def resume",
            '@workflow.signal(name="go")\n    def resume',
            "AgentRun.resume",
        ),
        ("workflows/agent_run.py", 'INTERRUPTED = CompleteResult(stop="interrupted")', "INTERRUPTED = None", "its top level"),
        ("workflows/agent_run.py", '@workflow.defn(name="agent_run")', '@workflow.defn(name="run")', "AgentRun"),
        ("domain/commands.py", "waits_for: WaitingFor | None = None", 'waits_for: WaitingFor | None = "input"', "ToolRef"),
        ("workflows/sweep.py", "range(ROUNDS)", "range(2)", "Sweep.run"),
    ],
)
def test_an_edit_is_named(copy: Path, source: str, old: str, new: str, place: str) -> None:
    change(copy, source, old, new)
    assert edited(copy) == [f"{source}: {place}"]


def test_what_is_added_and_taken_away_is_named(copy: Path) -> None:
    change(copy, "workflows/agent_run.py", "def _call_key", "def _key_of_call")
    assert edited(copy) == ["workflows/agent_run.py: AgentRun._call_key", "workflows/agent_run.py: AgentRun._key_of_call"]


def test_comments_docstrings_and_layout_are_no_edit(copy: Path) -> None:
    source = "workflows/agent_run.py"
    change(copy, source, '"""The run of an agent', '"""How an agent runs')
    change(copy, source, '"""Step after step, until there is an outcome."""', '"""Steps."""\n\n        # One after the other.')
    change(
        copy,
        source,
        "self._cancel_reason = signal.reason if signal else None",
        "self._cancel_reason = (\n    signal.reason if signal else None)  # why",
    )
    change(copy, "domain/commands.py", '"""Model calls begun; names the next one\'s events."""', '"""Calls."""')
    assert edited(copy) == []
