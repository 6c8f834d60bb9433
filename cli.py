"""The `perdure` command: composition root of the command line.

Everything that costs time to import is imported by the command that needs it, so that `perdure --help` is instant.
"""

import io
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from commands import agents, approvals, batches, keys, runs, sessions
from commands.context import Context, Failed, of
from commands.run import chat, run

if TYPE_CHECKING:
    from commands.client import Client
    from settings import ClientSettings

REFUSED = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help='Perdure runs AI agents that do not die. Start with `perdure up`, then: perdure run "Hello"',
)


@app.callback()
def prepare(context: typer.Context) -> None:
    it = Context(_connect)
    context.obj = it
    context.call_on_close(it.close)


@app.command()
def up() -> None:
    """Run everything here: Temporal, the API and a worker."""
    from commands import serve  # noqa: PLC0415  # see above

    serve.up()


@app.command()
def api() -> None:
    """Run the API alone."""
    from commands import serve  # noqa: PLC0415  # see above

    serve.api()


@app.command()
def worker(
    queues: Annotated[str | None, typer.Option(help="Only these task queues: name=concurrency,…")] = None,
) -> None:
    """Run a worker alone."""
    from commands import serve  # noqa: PLC0415  # see above

    serve.worker(queues)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    from commands import serve  # noqa: PLC0415  # see above

    serve.migrate()


@app.command()
def doctor(context: typer.Context) -> None:
    """Say what is missing. Exit code 1 when something needed is."""
    from commands.doctor import examine  # noqa: PLC0415  # see above
    from settings import load_settings, secret_reader  # noqa: PLC0415  # see above

    it = of(context)
    well = True
    for finding in examine(lambda: it.client, _settings().data_dir, lambda: load_settings().file(), secret_reader()):
        mark = "ok   " if finding.ok else "FAIL " if finding.needed else "-    "
        it.screen.answer(f"{mark} {finding.what}: {finding.detail}")
        well = well and (finding.ok or not finding.needed)
    raise typer.Exit(0 if well else 1)


app.command()(run)
app.command()(chat)
app.add_typer(runs.app, name="runs")
app.add_typer(sessions.app, name="sessions")
app.add_typer(batches.app, name="batch")
app.add_typer(agents.app, name="agents")
app.add_typer(approvals.app, name="approvals")
app.add_typer(keys.app, name="keys")


def _connect() -> "Client":
    from commands.client import connect  # noqa: PLC0415  # see above

    settings = _settings()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return connect(settings.url, key, settings.data_dir)


def _settings() -> "ClientSettings":
    from settings import ClientSettings  # noqa: PLC0415  # see above

    return ClientSettings()


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run's story
    try:
        app()
    except Failed as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error.message}\n")
        sys.exit(REFUSED)
    except BrokenPipeError:
        # Whoever read us has enough (`| head`); Python would complain when it closes the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
