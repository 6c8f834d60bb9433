"""`make chaos`: play it for some minutes and print the table. Ends with 1 when an invariant does not hold."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.breaks import BREAKS
from tests.chaos.harness import Outcome, Plan, run
from tests.postgres import PostgresUnavailable, find_binaries
from tests.redis import PROGRAM


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long there is killing (default 300)")
    parser.add_argument("--runs", type=int, default=50, help="pieces of load in that time (default 50)")
    parser.add_argument("--seed", type=int, default=7, help="of load and kills (default 7)")
    parser.add_argument("--sqlite", action="store_true", help="on SQLite although there is a Postgres")
    parser.add_argument("--break", dest="broken", choices=sorted(BREAKS), help="break a rule on purpose, to see it caught")
    parser.add_argument("--keep", action="store_true", help="keep the folder with every process's output")
    given = parser.parse_args()
    plan = Plan(given.seconds, given.runs, given.seed, not given.sqlite and _postgres(), PROGRAM is not None, given.broken)
    folder = Path(tempfile.mkdtemp(prefix="perdure-chaos-"))
    outcome = run(plan, folder, lambda line: print(line, file=sys.stderr))  # noqa: T201
    print(table(plan, outcome))  # noqa: T201  # it is what this command is for
    if given.keep or not outcome.passed:
        print(f"\nWhat each process said: {folder}")  # noqa: T201
    return 0 if outcome.passed else 1


def table(plan: Plan, outcome: Outcome) -> str:
    """Markdown, as on the page of figures."""
    shape = f"{'Postgres' if plan.postgres else 'SQLite'}, {'Redis' if plan.redis else 'no Redis'}"
    kills = ", ".join(f"{name} {count}" for name, count in sorted(outcome.kills.items()))
    lines = [
        f"Chaos: {plan.runs} pieces of load, {plan.seconds:.0f} s of SIGKILL, seed {plan.seed}, {shape}.",
        f"Killed: {kills}. The last run ended {outcome.calm_seconds:.0f} s after the last kill.",
        f"Viewers had {outcome.events} events and came back {outcome.reconnects} times; {outcome.unavailable} times 503.",
        "",
        "| must hold | looked at | faults | |",
        "|---|---:|---:|---|",
        *(f"| {r.name} | {r.looked_at} | {len(r.faults)} | {'**broken**' if r.faults else 'held'} |" for r in outcome.rows),
    ]
    for row in outcome.rows:
        lines += [f"- {row.name}: {fault}" for fault in row.faults[:5]]
    if plan.broken:
        lines.append(f"\nBroken on purpose: {BREAKS[plan.broken][0]}.")
    return "\n".join(lines)


def _postgres() -> bool:
    try:
        find_binaries()
    except PostgresUnavailable:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
