"""What the benchmarks share: figures, how samples are summarised, and what they were taken on."""

import math
import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["met", "**missed**", "inconclusive", ""]


@dataclass(frozen=True)
class Figure:
    """One line of the table, as it is shown."""

    name: str
    floor: str
    perdure: str
    ratio: str
    target: str
    verdict: Verdict
    """Inconclusive: the target is kept, but not by what was measured. Empty: no target."""


def kept(condition: bool) -> Verdict:
    return "met" if condition else "**missed**"


HEADINGS = ("figure", "floor", "Perdure", "ratio", "target", "")


def table(figures: Sequence[Figure]) -> str:
    """As Markdown, with columns that also line up in a terminal."""
    rows = [(f.name, f.floor, f.perdure, f.ratio, f.target, f.verdict) for f in figures]
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(HEADINGS), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest measured value that at least `share` (above 0, to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, without its children's; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
