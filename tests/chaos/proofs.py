"""Promises that single tests keep: which ones, run on both databases, as rows beside those of the chaos."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from tests.chaos.checks import Row

ROOT = Path(__file__).parents[2]
Database = Literal["sqlite", "postgres"]
NAMES: Mapping[Database, str] = {"sqlite": "SQLite", "postgres": "Postgres"}


@dataclass(frozen=True)
class Proof:
    """A promise and the tests that keep it: files, or functions in them, with all their parameters.

    A test says by `record_property` how many things it looked at, where that is not one, and how many `seconds` something took.
    """

    name: str
    tests: tuple[str, ...]
    databases: tuple[Database, ...] = ("sqlite", "postgres")
    target_seconds: float | None = None


_COMMANDS = "tests/test_commands.py::test_temporal_command_line_"
PROOFS = (
    Proof(
        "commands from the Temporal CLI (pause, resume, cancel, terminate) are settled",
        (f"{_COMMANDS}signals_and_queries", f"{_COMMANDS}cancels", f"{_COMMANDS}terminates_and_the_queue_goes_on"),
        target_seconds=60,
    ),
    Proof("faults of model servers are retried or refused, never taken for an answer", ("tests/test_model_faults.py",)),
    Proof(
        "the same POST 200 times at once is one run",
        ("tests/contract/test_idempotency.py::test_two_hundred_at_once_start_one_run",),
    ),
    Proof(
        "generated requests to the whole OpenAPI get no 5xx and nothing undeclared",
        ("tests/contract/test_openapi.py::test_generated_requests_get_declared_answers",),
    ),
    Proof(
        "every operation with another workspace's ids is 404",
        (
            "tests/contract/test_bad_input.py::test_another_workspaces_ids_do_not_exist",
            "tests/streams/test_streams.py::test_another_workspaces_streams_are_not_found",
        ),
    ),
    Proof(
        "runs and requests through a rolling restart under load",
        ("tests/durability/test_rolling_restart.py",),
        databases=("sqlite",),
    ),
)


@dataclass(frozen=True)
class Case:
    """One test that was run, by its node id."""

    id: str
    looked_at: int
    seconds: float | None
    fault: str | None


def prove(databases: Sequence[Database], say: Callable[[str], None]) -> list[Row]:
    """Run the tests on these databases; a row for every promise, and one for the databases themselves."""
    cases: dict[Database, list[Case]] = {}
    for database in databases:
        say(f"running the proofs on {NAMES[database]}")
        cases[database] = _run([test for proof in PROOFS if database in proof.databases for test in proof.tests], database)
    return rows(cases)


def rows(cases: Mapping[Database, Sequence[Case]]) -> list[Row]:
    """What was found, by database. A test that was skipped, or is gone, is a fault of its promise."""
    found = [_row(proof, {database: cases.get(database, ()) for database in proof.databases}) for proof in PROOFS]
    both = Row("of the proofs above, those for both databases pass on both (`make test` runs the whole suite on both)")
    for proof, row in zip(PROOFS, found, strict=True):
        if len(proof.databases) == len(NAMES):
            both.check(row.held, row.name)
    return [*found, both]


def _row(proof: Proof, cases: Mapping[Database, Sequence[Case]]) -> Row:
    row, seconds = Row(proof.name), list[float]()
    for database, ran in cases.items():
        for test in proof.tests:
            mine = [case for case in ran if case.id == test or case.id.startswith((f"{test}::", f"{test}["))]
            row.looked_at += sum(case.looked_at for case in mine)
            row.faults += [f"{case.id} ({NAMES[database]}): {case.fault}" for case in mine if case.fault is not None]
            row.faults += [] if mine else [f"{test} was not run on {NAMES[database]}"]
            if (target := proof.target_seconds) is not None:
                took = [(case.id, case.seconds) for case in mine]
                seconds += [passed for _, passed in took if passed is not None]
                row.faults += [f"{id} took {passed} s" for id, passed in took if passed is None or passed > target]
    if proof.target_seconds is not None and seconds:
        row.measured = f"at most {max(seconds):.1f} s of {proof.target_seconds:.0f}"
    return row


def _run(tests: Sequence[str], database: Database) -> list[Case]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PERDURE_TEST_DATABASE": database}, stdout=sys.stderr, check=False)
        return read(report.read_text()) if report.exists() else []


def read(junit: str) -> list[Case]:
    """What pytest wrote with `--junitxml`, without what was skipped."""
    return [_case(element) for element in ElementTree.fromstring(junit).iter("testcase") if element.find("skipped") is None]


def _case(element: ElementTree.Element) -> Case:
    said = {item.get("name"): item.get("value", "") for item in element.iter("property")}
    faults = [fault.get("message", "") for kind in ("failure", "error") for fault in element.findall(kind)]
    return Case(
        id=f"{element.get('classname', '').replace('.', '/')}.py::{element.get('name')}",
        looked_at=int(said.get("looked_at", 1)),
        seconds=float(said["seconds"]) if "seconds" in said else None,
        fault=next((fault.splitlines()[0][:200] if fault else "failed" for fault in faults), None),
    )
