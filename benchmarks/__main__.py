"""`make bench`: the figures that the project promises, printed beside their targets and written into RESULTS.md."""

import asyncio
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable
from dataclasses import replace

from benchmarks import batch, boot, growth, idempotency, idle, lists, search, steps, stop, tree, viewers
from benchmarks.measure import QUICK, Report, Size, allow_many_files
from benchmarks.results import RESULTS, keep, section

BENCHES: dict[str, tuple[str, Callable[[Size], Awaitable[Report]]]] = {
    "steps": ("A step, beside a bare Temporal program", steps.measure),
    "stop": ("Stop stops", stop.measure),
    "tree": ("A tree of sub-agents stops", tree.measure),
    "growth": ("A turn in a long session", growth.measure),
    "lists": ("Lists with many runs", lists.measure),
    "search": ("Finding a conversation", search.measure),
    "batch": ("A batch", batch.measure),
    "viewers": ("Many viewers", viewers.measure),
    "idle": ("Runs that wait", idle.measure),
    "idempotency": ("One POST, many times", idempotency.measure),
    "boot": ("Start-up", boot.measure),
}


async def main(names: list[str], size: Size, options: str, note: str) -> bool:
    """Measure, print and write RESULTS.md. Whether all targets are met."""
    good = True
    for name in names:
        title, measure = BENCHES[name]
        began, load = time.monotonic(), os.getloadavg()[0]
        print(f"\n{title}", flush=True)
        report = await measure(size)
        good = good and report.good
        print(f"\n{report.table()}", flush=True)
        text = section(name, title, report, options, time.monotonic() - began, load, note)
        keep({title: text}, [title for title, _ in BENCHES.values()])
    print(f"\nwritten to {RESULTS.name}")
    return good


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("bench", nargs="*", choices=[[], *BENCHES], help="default: all")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, which the figures then say")
    parser.add_argument("--note", default="", help="what else the machine was doing, for RESULTS.md")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size()
    if arguments.rounds is not None:
        size = replace(size, rounds=arguments.rounds)
    if size.rounds < 3:
        parser.error("medians want at least 3 rounds")
    options = (" --quick" if arguments.quick else "") + (f" --rounds {size.rounds}" if arguments.rounds else "")
    allow_many_files()
    sys.exit(0 if asyncio.run(main(arguments.bench or list(BENCHES), size, options, arguments.note)) else 1)
