"""Tools whose every start can be counted."""

import asyncio
from pathlib import Path

from domain.tools import Effect, ToolContext
from tools.functions import function_tool


def _note(context: ToolContext, line: str) -> None:
    context.directory.mkdir(parents=True, exist_ok=True)
    with Path(context.directory / "notes").open("a") as notes:
        notes.write(line + "\n")


@function_tool(effect=Effect.ONCE)
async def ring(name: str, seconds: float, context: ToolContext) -> str:
    """Ring a bell, which must never ring twice."""
    _note(context, f"{name} starts")
    await asyncio.sleep(seconds)
    _note(context, f"{name} ends")
    return f"{name} has rung"


@function_tool(effect=Effect.READ)
async def listen(name: str, seconds: float, context: ToolContext) -> str:
    """Listen for a while."""
    _note(context, f"{name} starts")
    await asyncio.sleep(seconds)
    _note(context, f"{name} ends")
    return f"{name} has been heard"
