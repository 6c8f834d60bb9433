"""What the benchmarks share: figures, how samples are summarised, and what they were taken on."""

import math
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Verdict = Literal["met", "**missed**", "inconclusive", ""]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    events: int = 10_000
    """Of the long session."""
    turns: int = 10
    """Of each session in a round."""
    runs: int = 100_000
    """Of the large database."""
    sessions: int = 100_000
    """Of the large database that is searched."""
    requests: int = 60
    """To each list in a round."""
    streams: int = 2_000
    waiting: int = 10_000
    """Runs that wait for input."""
    window_seconds: float = 30
    """For how long what does nothing is watched in a round."""
    repeats: int = 200
    """Of one POST."""
    stops: int = 20
    """Runs of each kind that are stopped in each way."""
    inputs: int = 10_000
    """Of the batch."""
    postgres: bool = True
    """Also on Postgres, where it is installed."""


QUICK = Size(rounds=3, runs=20_000, sessions=20_000, requests=30, waiting=1_000, window_seconds=10, stops=5, inputs=1_000)


@dataclass(frozen=True)
class Figure:
    """One line of a table, as it is shown: a value, where there is one beside what it is compared with."""

    name: str
    value: str
    target: str = "–"
    verdict: Verdict = ""
    """Inconclusive: the target is kept, but not by what was measured. Empty: no target."""
    base: str = "–"
    ratio: str = "–"


@dataclass(frozen=True)
class Report:
    """What one bench gives."""

    figures: Sequence[Figure]
    base: str
    """What the figures are compared with: a column's heading."""
    measured: str
    """What was measured and how, in Markdown."""
    value: str = "Perdure"

    @property
    def good(self) -> bool:
        return all(figure.verdict in ("met", "") for figure in self.figures)

    def table(self) -> str:
        """As Markdown, with columns that also line up in a terminal."""
        headings = ("figure", self.base, self.value, "ratio", "target", "")
        rows = [headings, *((f.name, f.base, f.value, f.ratio, f.target, f.verdict) for f in self.figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def kept(condition: bool) -> Verdict:
    return "met" if condition else "**missed**"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest measured value that at least `share` (above 0, to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, without its children's; NaN on other systems than Linux.

    By its clock, to the nanosecond: /proc counts hundredths of a second. Its number is made as `MAKE_PROCESS_CPUCLOCK` does,
    https://github.com/torvalds/linux/blob/master/include/linux/posix-timers.h
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return math.nan


def memory(pid: int) -> int:
    """Bytes of main memory that the process holds."""
    return psutil.Process(pid).memory_info().rss


def own_memory(pid: int) -> int:
    """Of that, what is not a mapped file: pages of a database, which the kernel may take back at any time, are no growth."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def allow_many_files() -> None:
    """For this process and those that it starts: thousands of connections are as many open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def machine() -> str:
    """Processor, cores, memory, system and Python, in a line. A host's name is nobody's business."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
