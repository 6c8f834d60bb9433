"""`perdure sessions`: look at conversations, stop them, name them, put them away, fork them, and carry them as files."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from commands.context import Failed, of

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at conversations, stop, name, archive, fork, export and import them.",
)

SessionId = Annotated[str, typer.Argument(metavar="SESSION")]
TITLE_CHARS = 60


@app.command("list")
def list_sessions(
    context: typer.Context,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones, too.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """The newest conversations."""
    from commands.show import moment, one_line  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    it.screen.table(
        ("session", "status", "agent", "messages", "created", "title"),
        [
            (
                session.id,
                "archived" if session.archived_at else session.status,
                f"{session.agent.name} v{session.agent.version}",
                str(session.message_count),
                moment(session.created_at),
                one_line(session.title or "", TITLE_CHARS),
            )
            for session in it.client.sessions(limit=limit, archived=archived)
        ],
    )


@app.command()
def rename(
    context: typer.Context, session: SessionId, title: Annotated[str, typer.Argument(help='Its name; "" takes it away.')]
) -> None:
    """Name a conversation."""
    it = of(context)
    it.screen.answer(f"{it.client.rename_session(session, title).id} renamed")


@app.command()
def interrupt(context: typer.Context, session: SessionId) -> None:
    """End the turn that runs in it; what waits behind it goes on."""
    it = of(context)
    it.screen.answer(f"{it.client.command_session(session, 'interrupt').id} is to be interrupted")


@app.command()
def pause(context: typer.Context, session: SessionId) -> None:
    """Take messages and start nothing; the turn that runs pauses at its next step."""
    it = of(context)
    it.screen.answer(f"{it.client.command_session(session, 'pause').id} paused")


@app.command()
def resume(context: typer.Context, session: SessionId) -> None:
    """Go on where it was paused."""
    it = of(context)
    it.screen.answer(f"{it.client.command_session(session, 'resume').id} resumed")


@app.command()
def archive(context: typer.Context, session: SessionId) -> None:
    """Keep it to be read: it takes no more messages."""
    it = of(context)
    it.screen.answer(f"{it.client.command_session(session, 'archive').id} archived")


@app.command()
def delete(context: typer.Context, session: SessionId) -> None:
    """Delete it for good, with its runs, events, files and histories in Temporal."""
    it = of(context)
    it.client.delete_session(session)
    it.screen.answer(f"{session} deleted")


@app.command()
def export(
    context: typer.Context,
    session: SessionId,
    markdown: Annotated[bool, typer.Option("--markdown", help="To be read, instead of JSON to be imported again.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, instead of standard output.")] = None,
) -> None:
    """Write a conversation down, up to now, without its files."""
    it = of(context)
    pieces = it.client.export(session, "markdown" if markdown else "json")
    try:
        with nullcontext(sys.stdout.buffer) if output is None else open(output, "wb") as target:
            for piece in pieces:
                target.write(piece)
            target.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failed(f"{output or 'standard output'} cannot be written: {error}") from error


@app.command("import")
def import_(
    context: typer.Context,
    document: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote as JSON.")],
    agent: Annotated[str | None, typer.Option(help="An agent of yours, in place of the one in the file.")] = None,
) -> None:
    """Make a conversation out of an exported one. Its id goes to standard output."""
    it = of(context)
    try:
        content = document.read_bytes()
    except OSError as error:
        raise Failed(f"{document} cannot be read: {error}") from error
    made = it.client.import_session(content, agent)
    it.screen.note(f"{made.title or made.agent.name} · {made.message_count} messages")
    it.screen.answer(made.id)


@app.command()
def fork(
    context: typer.Context,
    session: SessionId,
    after: Annotated[str | None, typer.Option(metavar="EVENT", help="Copy it up to this event.")] = None,
    before: Annotated[str | None, typer.Option(metavar="EVENT", help="Copy it up to before this event.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Go on there at once with this.")] = None,
) -> None:
    """Copy a conversation, or its beginning, into a new one. The new one's id goes to standard output."""
    it = of(context)
    forked = it.client.fork(session, after=after, before=before, message=message)
    if forked.run is not None:
        it.screen.note(f"run {forked.run.id}")
    it.screen.answer(forked.session.id)
