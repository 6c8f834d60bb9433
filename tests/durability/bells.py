"""Tools whose every start can be counted."""

import asyncio
from pathlib import Path

from domain.tools import Effect, ToolContext
from tools.functions import function_tool


def _note(context: ToolContext, line: str) -> bool:
    """Write it down; whether it had been there before."""
    context.directory.mkdir(parents=True, exist_ok=True)
    with Path(context.directory / "notes").open("a+") as notes:
        notes.seek(0)
        before = line in notes.read().splitlines()
        notes.write(line + "\n")
    return before


@function_tool(effect=Effect.ONCE)
async def ring(name: str, seconds: float, context: ToolContext) -> str:
    """Ring a bell, which must never ring twice."""
    _note(context, f"{name} starts")
    await asyncio.sleep(seconds)
    _note(context, f"{name} ends")
    return f"{name} has rung"


@function_tool(effect=Effect.READ)
async def listen(name: str, seconds: float, context: ToolContext) -> str:
    """Listen for a while, the first time."""
    if not _note(context, f"{name} starts"):
        await asyncio.sleep(seconds)
    _note(context, f"{name} ends")
    return f"{name} has been heard"


@function_tool(effect=Effect.IDEMPOTENT)
async def pay(name: str, seconds: float, context: ToolContext) -> str:
    """Pay a bill, which counts once however often it is done under its key. It takes long the first time only."""
    if not _note(context, f"{name} under {context.idempotency_key}"):
        await asyncio.sleep(seconds)
    return f"{name} is paid"
