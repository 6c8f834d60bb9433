"""How deep, how many, how long and how much: what bounds a tree of sub-agents, and how fast it stops."""

import secrets
import time
from typing import Any

import pytest

from tests.service import RunView, Workspace
from tests.test_subagents import LONG, below, delegate, results, team
from tests.tools.shells import WITH_BWRAP, alive, until

SECONDS = 15
"""For machines that are busy; `python -m benchmarks stop` measures that it is less than one."""


def test_three_levels_and_no_fourth_where_the_agent_does_not_say(workspace: Workspace) -> None:
    lead = team(workspace)
    steps: list[dict[str, Any]] = [{"text": "level 5"}]
    for level in (4, 3, 2, 1):
        steps = [{"tools": [delegate("lead", *steps)]}, {"text": f"level {level}"}]
    run = workspace.start(*steps, agent=lead)

    assert run.wait()["status"] == "completed"
    told: list[tuple[str, bool]] = []
    chain = [run]
    while found := below(workspace, chain[-1], 0 if len(chain) > 3 else 1):
        told += results(chain[-1])
        chain += found
    assert told == [("level 2", False), ("level 3", False), ("level 4", False)]
    assert results(chain[-1]) == [("agents are nested as deep as they may be: do this yourself", True)]


def test_eight_at_once_where_the_agent_does_not_say(workspace: Workspace) -> None:
    lead = team(workspace)
    step = {"text": "done ", "words": 20, "delay_ms": 50}
    run = workspace.start({"tools": [delegate("lead", step) for _ in range(10)]}, {"text": "End."}, agent=lead)

    assert run.wait()["status"] == "completed"
    rows = [child.row for child in below(workspace, run, 10)]
    changes = sorted([(row["created_at"], 1) for row in rows] + [(row["finished_at"], -1) for row in rows])
    at_once = [sum(change for _, change in changes[: count + 1]) for count in range(len(changes))]
    assert max(at_once) == 8


def test_the_time_of_a_run_is_that_of_its_tree(workspace: Workspace) -> None:
    lead = team(workspace)
    run = workspace.start({"tools": [delegate("lead", LONG)]}, agent=lead, limits={"max_seconds": 2})

    row = run.wait(15)

    assert (row["status"], row["stop_reason"]["type"]) == ("completed", "max_duration")
    (child,) = below(workspace, run)
    assert child.row["finished_at"] is not None
    assert child.row["limits"]["max_seconds"] <= 2


@pytest.mark.parametrize(("command", "status"), [("pause", "paused"), ("cancel", "cancelled"), ("terminate", "terminated")])
def test_a_command_reaches_every_level(workspace: Workspace, command: str, status: str) -> None:
    """Three levels below the run, each of which works itself beside the one below it."""
    lead = team(workspace)
    work = delegate("lead", LONG)
    steps: list[dict[str, Any]] = [LONG]
    for _ in range(3):
        steps = [{"tools": [work, delegate("lead", *steps)]}, {"text": "End."}]
    run = workspace.start(*steps, agent=lead)
    tree = [run, *_tree(workspace, run, 6)]
    run.until(lambda _: all("span.model_request_start" in one.types() for one in tree))

    asked = time.monotonic()
    run.command(command, {"mode": "now"} if command == "pause" else {})
    for one in tree:
        one.until(lambda row: row["status"] == status, SECONDS)

    assert time.monotonic() - asked < SECONDS
    if command == "pause":
        run.command("cancel")
        assert run.wait()["status"] == "cancelled"


@WITH_BWRAP
@pytest.mark.parametrize("command", ["cancel", "terminate"])
def test_a_command_in_the_sandbox_at_the_lowest_level_is_killed(workspace: Workspace, command: str) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"
    bash = {"type": "function", "name": "bash", "permission_policy": {"type": "always_allow"}}
    lead = workspace.agent(name="lead", tools=[bash], multiagent={"agents": [{"type": "self"}]})["id"]
    steps: list[dict[str, Any]] = [{"tools": [{"name": "bash", "input": {"command": f"sleep {marker}"}}]}]
    for _ in range(3):
        steps = [{"tools": [delegate("lead", *steps)]}]
    run = workspace.start(*steps, agent=lead)
    until(lambda: [process for process in alive(marker) if process.name() == "sleep"], 20)

    run.command(command)

    until(lambda: not alive(marker), SECONDS)
    assert run.wait(SECONDS)["status"] == ("cancelled" if command == "cancel" else "terminated")


def _tree(workspace: Workspace, run: RunView, count: int) -> list[RunView]:
    """All that is below it, once there are so many."""
    deadline = time.monotonic() + 20
    while True:
        found: list[RunView] = []
        level = [run]
        while level:
            rows = [row for one in level for row in workspace.get("/v1/runs", parent_run_id=one.id)["data"]]
            level = [RunView(workspace, row["id"]) for row in rows]
            found += level
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
