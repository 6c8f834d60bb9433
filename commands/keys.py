"""`perdure keys`: API keys of the workspace."""

from typing import Annotated

import typer

from commands.context import of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke API keys.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What it is for.")],
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated; default: all of the calling key's.")] = None,
) -> None:
    """Make a key. It goes to standard output, once, and can never be read again."""
    it = of(context)
    created = it.client.create_key(name, scope or [])
    it.screen.note(f"{created.id} {created.name} · {' '.join(created.scopes)} · kept nowhere: note it down now")
    it.screen.answer(created.key or "")


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """The keys, without their secrets."""
    from commands.show import moment  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    stored = it.client.keys()
    it.screen.table(
        ("key", "name", "begins with", "scopes", "created", "revoked"),
        [
            (key.id, key.name, key.prefix, " ".join(key.scopes), moment(key.created_at), moment(key.revoked_at))
            for key in stored
        ],
    )


@app.command()
def revoke(context: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, key_….")]) -> None:
    """Refuse requests with this key from now on."""
    it = of(context)
    it.client.revoke_key(key)
    it.screen.answer(f"{key} revoked")
