"""The chaos of `make chaos`, short: once whole, and once with a rule broken on purpose, which must be caught."""

import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import table
from tests.chaos.harness import Plan, run
from tests.conftest import DATABASE
from tests.redis import PROGRAM

pytestmark = pytest.mark.timeout(400)
REDIS = PROGRAM is not None


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


@pytest.mark.skipif(DATABASE == "sqlite", reason="played once, in the round on Postgres")
def test_a_minute_of_kills_leaves_no_trace(tmp_path: Path) -> None:
    plan = Plan(seconds=60, runs=14, seed=11, postgres=True, redis=REDIS)
    outcome = run(plan, tmp_path, say)
    assert outcome.passed, table(plan, outcome)
    assert {"worker", "api", "temporal"} <= set(outcome.kills)
    assert outcome.reconnects > 0, "nobody was disturbed: this proves nothing"


@pytest.mark.single_database
def test_a_broken_rule_is_caught(tmp_path: Path) -> None:
    plan = Plan(seconds=10, runs=5, seed=11, postgres=False, redis=REDIS, broken="cursor")
    outcome = run(plan, tmp_path, say)
    assert "viewers told everything once and in order" in [row.name for row in outcome.rows if row.faults]
