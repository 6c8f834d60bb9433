"""`perdure batch`: an agent on every line of a file."""

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.context import Context, Failed, of
from commands.run import DETACHED, AgentOption

if TYPE_CHECKING:
    from pydantic import JsonValue

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run an agent on many inputs.")

TOLD_EVERY_SECONDS = 1.0


@app.command()
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON Lines: a string, content blocks, or {input, custom_id, metadata}.")],
    agent: AgentOption = None,
    at_once: Annotated[int | None, typer.Option("--at-once", help="Runs at work at once; default: 16.")] = None,
) -> None:
    """Start a batch, watch it, print its results as JSON Lines.

    Exit code 1 when an item did not complete; Ctrl-C leaves it running.
    """
    it = of(context)
    made = it.client.start_batch(_inputs(file), agent=agent, at_once=at_once)
    it.screen.note(made.id)
    try:
        counts = _follow(it, made.id)
    except KeyboardInterrupt:
        it.screen.failure(f"Left it running. For its results: perdure batch results {made.id}")
        raise typer.Exit(DETACHED) from None
    _print_results(it, made.id)
    raise typer.Exit(0 if counts["completed"] == counts["total"] else 1)


@app.command()
def results(context: typer.Context, batch: Annotated[str, typer.Argument(metavar="BATCH")]) -> None:
    """The results as they stand now: JSON Lines, in the order of the inputs."""
    _print_results(of(context), batch)


@app.command()
def cancel(
    context: typer.Context,
    batch: Annotated[str, typer.Argument(metavar="BATCH")],
    reason: Annotated[str | None, typer.Option(help="Why; kept in its log.")] = None,
) -> None:
    """Begin nothing more and cancel what is at work."""
    it = of(context)
    it.screen.answer(f"{batch} {it.client.cancel_batch(batch, reason).status}")


def _inputs(file: Path) -> "list[JsonValue]":
    import json  # noqa: PLC0415  # see commands/context.py

    inputs: list[JsonValue] = []
    try:
        lines = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines.split("\n"), 1):
        try:
            inputs += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise Failed(f"{file}, line {number} is no JSON: {error}") from error
    if not inputs:
        raise Failed(f"{file} has no inputs.")
    return inputs


def _follow(it: Context, batch_id: str) -> dict[str, int]:
    from commands.frames import BatchFrame  # noqa: PLC0415  # see commands/context.py
    from commands.story import lost  # noqa: PLC0415

    counts: dict[str, int] = {}
    told = 0.0
    path = f"/v1/batches/{batch_id}/events/stream"
    frames = it.client.connection.stream(path, lambda why: it.screen.failure(lost(why)))
    with closing(frames):
        for frame in frames:
            counts = BatchFrame.model_validate_json(frame.data).counts or counts
            if frame.event == "done" or time.monotonic() - told > TOLD_EVERY_SECONDS:
                told = time.monotonic()
                it.screen.note(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    return counts


def _print_results(it: Context, batch_id: str) -> None:
    for line in it.client.batch_results(batch_id):
        it.screen.answer(line)
