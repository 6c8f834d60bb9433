"""`perdure sessions`: look at conversations, name them, put them away."""

from typing import Annotated

import typer

from commands.context import of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at conversations, name them, put them away.")

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
def archive(context: typer.Context, session: SessionId) -> None:
    """Keep it to be read: it takes no more messages."""
    it = of(context)
    it.screen.answer(f"{it.client.archive_session(session).id} archived")


@app.command()
def delete(context: typer.Context, session: SessionId) -> None:
    """Delete it for good, with its runs, events, files and histories in Temporal."""
    it = of(context)
    it.client.delete_session(session)
    it.screen.answer(f"{session} deleted")
