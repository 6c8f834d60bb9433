"""Tools of every effect that write down, in a file outside the service, what was really done."""

import asyncio
import os
from pathlib import Path

from domain.tools import Effect, ToolContext
from tools.functions import function_tool

LEDGER = "PERDURE_CHAOS_LEDGER"
"""Names the file. One line a deed: moment, tool, tool use id, idempotency key."""


def note(moment: str, tool: str, context: ToolContext) -> None:
    with Path(os.environ[LEDGER]).open("a") as file:  # one short write in append mode: lines of several processes do not mix
        file.write(f"{moment} {tool} {context.tool_use_id} {context.idempotency_key}\n")


async def _deed(tool: str, seconds: float, context: ToolContext) -> str:
    note("began", tool, context)
    await asyncio.sleep(seconds)
    note("done", tool, context)
    return f"{tool} is done"


@function_tool(effect=Effect.READ)
async def look(seconds: float, context: ToolContext) -> str:
    """Read something; may be repeated."""
    return await _deed("look", seconds, context)


@function_tool(effect=Effect.IDEMPOTENT)
async def put(seconds: float, context: ToolContext) -> str:
    """Write something under a key; may be repeated under the same key."""
    return await _deed("put", seconds, context)


@function_tool(effect=Effect.ONCE)
async def pay(seconds: float, context: ToolContext) -> str:
    """Pay something; must never be started twice."""
    return await _deed("pay", seconds, context)
