"""`perdure runs`: look at runs and command them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from commands.context import of
from commands.run import follow

if TYPE_CHECKING:
    from pydantic import JsonValue

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at runs and command them.")

RunId = Annotated[str, typer.Argument(metavar="RUN")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the run's log.")]


@app.command("list")
def list_runs(
    context: typer.Context,
    status: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent's: name or id.")] = None,
    session: Annotated[str | None, typer.Option(help="Only this session's.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """The newest runs."""
    from commands.show import moment, money, run_status, seconds, tokens  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    runs = it.client.runs(limit=limit, status=status or [], agent=agent, session=session)
    it.screen.table(
        ("run", "status", "agent", "created", "took", "tokens", "cost"),
        [
            (
                run.id,
                run_status(run),
                f"{run.agent.name} v{run.agent.version}",
                moment(run.created_at),
                seconds(run),
                tokens(run.usage),
                money(run.cost),
            )
            for run in runs
        ],
    )


@app.command()
def get(
    context: typer.Context, run: RunId, as_json: Annotated[bool, typer.Option("--json", help="As the service says it.")] = False
) -> None:
    """One run."""
    it = of(context)
    if as_json:
        it.screen.answer(it.client.run_as_json(run))
    else:
        it.screen.run(it.client.run(run))


@app.command()
def logs(
    context: typer.Context,
    run: RunId,
    follow_on: Annotated[
        bool, typer.Option("--follow", "-f", help="Show it as `perdure run` does, until it is over; exit code as there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one event a line.")] = False,
) -> None:
    """The run's events so far, one a line."""
    import json  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    if follow_on:
        raise typer.Exit(follow(it, run, typed=None, as_json=as_json))
    from commands.frames import log_line  # noqa: PLC0415  # see commands/context.py

    for event in it.client.run_events(run):
        it.screen.answer(json.dumps(event, ensure_ascii=False) if as_json else log_line(event))


@app.command()
def pause(
    context: typer.Context,
    run: RunId,
    now: Annotated[bool, typer.Option("--now", help="Interrupt the model call in flight and keep its text.")] = False,
) -> None:
    """Pause at the next step."""
    _command(context, run, "pause", {"mode": "now" if now else "step"})


@app.command()
def resume(context: typer.Context, run: RunId) -> None:
    """Go on with a paused run."""
    _command(context, run, "resume", {})


@app.command()
def cancel(context: typer.Context, run: RunId, reason: Reason = None) -> None:
    """Stop it gracefully; what it has written is kept."""
    _command(context, run, "cancel", {"reason": reason})


@app.command()
def terminate(context: typer.Context, run: RunId, reason: Reason = None) -> None:
    """Kill it where it stands."""
    _command(context, run, "terminate", {"reason": reason})


@app.command()
def retry(context: typer.Context, run: RunId) -> None:
    """Run a failed or stopped run again, from where its log stands."""
    _command(context, run, "retry", {})


@app.command("input")
def send_input(
    context: typer.Context, run: RunId, text: Annotated[str, typer.Argument(help="The text; - reads it from standard input.")]
) -> None:
    """Answer a waiting run, or tell it something for its next step."""
    _command(context, run, "input", {"content": sys.stdin.read() if text == "-" else text})


def _command(context: typer.Context, run_id: str, name: str, body: "dict[str, JsonValue]") -> None:
    from commands.show import run_status  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    run = it.client.command(run_id, name, body)
    it.screen.answer(f"{run.id} {run_status(run)}")
