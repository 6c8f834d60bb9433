"""`make chaos`: play it for some minutes, run the proofs, and print the table. Ends with 1 when something does not hold."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.breaks import BREAKS
from tests.chaos.checks import Row
from tests.chaos.harness import Outcome, Plan, run
from tests.chaos.proofs import prove
from tests.postgres import PostgresServer, PostgresUnavailable, find_binaries
from tests.redis import PROGRAM


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long there is killing (default 300)")
    parser.add_argument("--runs", type=int, default=50, help="pieces of load in that time (default 50)")
    parser.add_argument("--seed", type=int, default=7, help="of load and kills (default 7)")
    parser.add_argument("--sqlite", action="store_true", help="on SQLite although there is a Postgres")
    parser.add_argument("--break", dest="broken", choices=sorted(BREAKS), help="break a rule on purpose, to see it caught")
    parser.add_argument("--keep", action="store_true", help="keep the folder with every process's output")
    parser.add_argument("--only", choices=("chaos", "proofs"), help="only the one or the other")
    given = parser.parse_args()
    on_postgres = not given.sqlite and _postgres()
    held = True
    if given.only != "proofs":
        with ExitStack() as stack:
            url = stack.enter_context(PostgresServer()).create_database() if on_postgres else None
            plan = Plan(given.seconds, given.runs, given.seed, url, PROGRAM is not None, given.broken)
            folder = Path(tempfile.mkdtemp(prefix="perdure-chaos-"))
            outcome = run(plan, folder, _say)
        print(account(plan, outcome))  # noqa: T201  # it is what this command is for
        held = outcome.passed
        if given.keep or not held:
            print(f"\nWhat each process said: {folder}")  # noqa: T201
    if given.only != "chaos":
        rows = prove(("sqlite", "postgres") if on_postgres else ("sqlite",), _say)
        print(f"\n{table(rows)}")  # noqa: T201
        held = held and all(row.held for row in rows)
    return 0 if held else 1


def account(plan: Plan, outcome: Outcome) -> str:
    """What was done, and the table."""
    shape = f"{'SQLite' if plan.database_url is None else 'Postgres'}, {'Redis' if plan.redis else 'no Redis'}"
    kills = ", ".join(f"{name} {count}" for name, count in sorted(outcome.kills.items()))
    lines = [
        f"Chaos: {plan.runs} pieces of load, {plan.seconds:.0f} s of SIGKILL, seed {plan.seed}, {shape}.",
        f"Killed: {kills}. The last run ended {outcome.calm_seconds:.0f} s after the last kill.",
        f"Viewers had {outcome.events} events and came back {outcome.reconnects} times; {outcome.unavailable} times 503.",
        "",
        table(outcome.rows),
    ]
    if plan.broken:
        lines.append(f"\nBroken on purpose: {BREAKS[plan.broken][0]}.")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Markdown, as on the page of figures."""
    lines = ["| must hold | looked at | faults | |", "|---|---:|---:|---|"]
    for row in rows:
        verdict = ("held" if row.held else "**broken**") + (f", {row.measured}" if row.measured else "")
        lines.append(f"| {row.name} | {row.looked_at} | {len(row.faults)} | {verdict} |")
    return "\n".join([*lines, *(f"- {row.name}: {fault}" for row in rows for fault in row.faults[:5])])


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def _postgres() -> bool:
    try:
        find_binaries()
    except PostgresUnavailable:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
