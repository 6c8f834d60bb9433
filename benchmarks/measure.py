"""What the benchmarks share: figures, how they are summarised, and what they ran on."""

import math
import os
import platform
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per round, and the limits it must keep, if any."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool:
        """Whether the median keeps the target; a figure without one always does."""
        above = self.at_most is None or self.median <= self.at_most
        return above and (self.at_least is None or self.median >= self.at_least)

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {_short(self.at_most)}"
        return "" if self.at_least is None else f"≥ {_short(self.at_least)}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest measured value that at least `share` (above 0, to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Each figure's median beside its target, and how far the rounds lay apart."""
    shown = Table("figure", "median", "unit", "target", "", "rounds", title=title, title_justify="left")
    for figure in figures:
        verdict = "" if not figure.target else "met" if figure.met else "MISSED"
        rounds = "  ".join(_short(value) for value in figure.rounds)
        shown.add_row(figure.name, _short(figure.median), figure.unit, figure.target, verdict, rounds)
    return shown


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


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
