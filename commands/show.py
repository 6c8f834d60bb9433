"""Rich on a terminal, plain text elsewhere: then the answer alone is on stdout and everything else on stderr."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from domain.runs import Run
from domain.usage import Cost, Usage

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Without control characters: what a model or a tool writes must not drive the person's terminal."""
    return _CONTROL.sub("", text)


def one_line(text: str, chars: int) -> str:
    """The first line, cut to `chars`, with an ellipsis where something is missing."""
    line, _, rest = text.strip().partition("\n")
    return line if len(line) <= chars and not rest else f"{line[: chars - 1]}…"


class Screen:
    def __init__(self) -> None:
        self.out = Console(highlight=False, emoji=False, soft_wrap=True)
        self.err = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)
        self.is_terminal = self.out.is_terminal

    def answer(self, text: str) -> None:
        """What was asked for, on stdout."""
        if self.is_terminal:
            self.out.print(Text(clean(text)))
        else:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def note(self, text: str, style: str = "dim") -> None:
        """What goes on beside it."""
        console = self.out if self.is_terminal else self.err
        console.print(Text(clean(text), style=style))

    def failure(self, message: str) -> None:
        self.err.print(Text(clean(message), style="red"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns on a terminal, tab-separated lines with a heading elsewhere."""
        if not self.is_terminal:
            for row in (columns, *rows):
                self.answer("\t".join(" ".join(cell.split()) for cell in row))
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        # Not soft-wrapped: a table that does not fit folds its cells.
        self.out.print(table, soft_wrap=False)

    def run(self, run: Run) -> None:
        """A run's facts, one a line."""
        facts = [
            ("id", run.id),
            ("status", run_status(run)),
            ("agent", f"{run.agent.name} v{run.agent.version} ({run.agent.id})"),
            ("session", run.session_id),
            ("created", moment(run.created_at)),
            ("started", moment(run.started_at)),
            ("finished", moment(run.finished_at)),
            ("attempt", str(run.attempt)),
            ("steps", str(run.step_count)),
            ("tokens", tokens(run.usage)),
            ("cost", money(run.cost)),
            ("temporal", run.links.temporal or ""),
            ("error", f"{run.error.code}: {run.error.message}" if run.error else ""),
            ("output", run.output or ""),
        ]
        for name, value in facts:
            if value:
                self.answer(f"{name:<9} {value}")


def run_status(run: Run) -> str:
    """The status with what it waits for, why it stopped, or what it was asked to do."""
    if run.waiting_for is not None:
        return f"{run.status.value} for {run.waiting_for}"
    if run.status.over:
        return f"{run.status.value} ({run.stop_reason.type})" if run.stop_reason else run.status.value
    if run.cancel_requested_at is not None:
        return f"{run.status.value}, cancelling"
    if run.pause_requested_at is not None and run.paused_at is None:
        return f"{run.status.value}, pausing"
    return run.status.value


def moment(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def seconds(run: Run) -> str:
    """How long it has been running, or ran."""
    if run.started_at is None:
        return ""
    return f"{((run.finished_at or datetime.now(UTC)) - run.started_at).total_seconds():.1f} s"


def tokens(usage: Usage) -> str:
    """Tokens in, with what came from a cache, and out; `~` when they are counted from the text."""
    mark = "~" if usage.estimated else ""
    read = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    cached = f" ({usage.cache_read_input_tokens:,} cached)" if usage.cache_read_input_tokens else ""
    return f"{mark}{read:,} in{cached} · {mark}{usage.output_tokens:,} out"


def money(cost: Cost | None) -> str:
    """Unknown is not zero."""
    return "cost unknown" if cost is None else f"${cost.amount}" if cost.currency == "USD" else f"{cost.amount} {cost.currency}"
