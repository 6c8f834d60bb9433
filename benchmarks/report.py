"""The table of figures, for the terminal and for RESULTS.md."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table, as it is shown."""

    name: str
    floor: str
    perdure: str
    ratio: str
    target: str
    met: bool


HEADINGS = ("figure", "floor", "Perdure", "ratio", "target", "")


def table(figures: Sequence[Figure]) -> str:
    """As Markdown, with columns that also line up in a terminal."""
    rows = [(f.name, f.floor, f.perdure, f.ratio, f.target, "met" if f.met else "**missed**") for f in figures]
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(HEADINGS), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])
