"""The chaos of `make chaos`, short: once whole, and once with a rule broken on purpose, which must be caught. The proofs that
it runs are tests of this suite."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.__main__ import account
from tests.chaos.harness import Plan, run
from tests.chaos.proofs import PROOFS, ROOT, read, rows
from tests.conftest import DATABASE
from tests.postgres import PostgresServer
from tests.redis import PROGRAM

pytestmark = pytest.mark.timeout(400)
REDIS = PROGRAM is not None


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


@pytest.mark.skipif(DATABASE == "sqlite", reason="played once, in the round on Postgres")
def test_a_minute_of_kills_leaves_no_trace(tmp_path: Path, postgres: PostgresServer) -> None:
    plan = Plan(seconds=60, runs=14, seed=11, database_url=postgres.create_database(), redis=REDIS)
    outcome = run(plan, tmp_path, say)
    assert outcome.passed, account(plan, outcome)
    assert {"worker", "api", "temporal"} <= set(outcome.kills)
    assert outcome.reconnects > 0, "nobody was disturbed: this proves nothing"


@pytest.mark.single_database
def test_a_broken_rule_is_caught(tmp_path: Path) -> None:
    plan = Plan(seconds=10, runs=5, seed=11, database_url=None, redis=REDIS, broken="cursor")
    outcome = run(plan, tmp_path, say)
    assert "viewers told everything once and in order" in [row.name for row in outcome.rows if row.faults]


TOOK = '<properties><property name="seconds" value="1.5"/></properties>'


def junit(tests: Sequence[str], inner: str) -> str:
    """As pytest writes it; `inner` is what it says of the first."""
    lines: list[str] = []
    for number, test in enumerate(tests):
        path, _, name = test.partition(".py::")
        lines.append(f'<testcase classname="{path.replace("/", ".")}" name="{name}">{TOOK if number else inner}</testcase>')
    return f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>"


@pytest.mark.single_database
@pytest.mark.parametrize(
    ("inner", "gone", "held"),
    [
        (TOOK, 0, True),
        ('<properties><property name="seconds" value="60.5"/></properties>', 0, False),
        ("", 0, False),
        ('<skipped message="no Postgres"/>', 0, False),
        (f'{TOOK}<failure message="no"/>', 0, False),
        (f'{TOOK}<error message="no"/>', 0, False),
        (TOOK, 1, False),
        (TOOK, 3, False),
    ],
)
def test_a_proof_is_held_only_where_all_of_it_was_looked_at(inner: str, gone: int, held: bool) -> None:
    commands = PROOFS[0]
    good = read(junit(commands.tests, TOOK))
    other = read(junit(commands.tests[: len(commands.tests) - gone], inner))
    row = rows({"sqlite": good, "postgres": other})[0]
    assert (row.held, row.measured) == (held, "at most 60.5 s of 60" if "60.5" in inner else "at most 1.5 s of 60")
    assert not rows({})[0].held


@pytest.mark.single_database
def test_the_tests_that_prove_are_there() -> None:
    for test in (test for proof in PROOFS for test in proof.tests):
        path, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / path).read_text()
