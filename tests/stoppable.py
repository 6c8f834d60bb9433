"""Tools that go on until they are stopped, and say in a file how they ended."""

import asyncio
import time
from pathlib import Path

from domain.tools import Effect, ToolContext
from tools.functions import function_tool

SECONDS = 20


def _note(context: ToolContext, word: str) -> None:
    context.directory.mkdir(parents=True, exist_ok=True)
    with Path(context.directory / "notes").open("a") as notes:
        notes.write(word + "\n")


@function_tool(effect=Effect.READ)
async def dream(context: ToolContext) -> str:
    """Sleep for long."""
    _note(context, "begun")
    try:
        await asyncio.sleep(SECONDS)
    finally:
        _note(context, "ended")
    return "woken"


@function_tool(effect=Effect.ONCE)
def drone(context: ToolContext) -> str:
    """Sleep in a thread, which nobody can wake."""
    _note(context, "begun")
    time.sleep(3)
    _note(context, "ended")
    return "woken"
