"""`perdure approvals`: what waits for a person's decision."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from commands.context import of

if TYPE_CHECKING:
    from pydantic import JsonValue

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Decide on tool calls that wait for approval.")

ApprovalId = Annotated[str, typer.Argument(metavar="APPROVAL")]
Remember = Annotated[bool, typer.Option("--remember", help="Decide every further call of this tool in the session so.")]
INPUT_CHARS = 80


@app.command("list")
def list_approvals(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Those that are decided, too.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """What waits for a decision, the newest first."""
    from commands.show import moment, one_line  # noqa: PLC0415  # see commands/context.py

    it = of(context)
    it.screen.table(
        ("approval", "status", "tool", "arguments", "run", "asked"),
        [
            (
                approval.id,
                approval.status,
                approval.tool_name,
                one_line(json.dumps(approval.input, ensure_ascii=False), INPUT_CHARS),
                approval.run_id,
                moment(approval.created_at),
            )
            for approval in it.client.approvals(limit=limit, every=every)
        ],
    )


@app.command()
def approve(
    context: typer.Context,
    approval: ApprovalId,
    arguments: Annotated[str | None, typer.Option("--input", help="Other arguments than those asked about, as JSON.")] = None,
    remember: Remember = False,
) -> None:
    """Let the tool be called."""
    body: dict[str, JsonValue] = {"decision": "approve", "remember": remember}
    if arguments is not None:
        try:
            body["input"] = json.loads(arguments)
        except ValueError as error:
            raise typer.BadParameter(f"--input is no JSON: {error}") from error
    _decide(context, approval, body)


@app.command()
def deny(
    context: typer.Context,
    approval: ApprovalId,
    reason: Annotated[str | None, typer.Option(help="Why; the model reads it.")] = None,
    remember: Remember = False,
) -> None:
    """Do not let it be called."""
    _decide(context, approval, {"decision": "deny", "reason": reason, "remember": remember})


def _decide(context: typer.Context, approval_id: str, body: "dict[str, JsonValue]") -> None:
    it = of(context)
    decided = it.client.decide(approval_id, body)
    it.screen.answer(f"{decided.id} {decided.status}")
