"""A tool of each effect that records its starts in a file of its own, and goes on only when it is told to.

The file is named by TILL_NOTES; each line is the process, what happened, to which call, and the idempotency key.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from domain.tools import Effect, ToolContext
from tools.functions import function_tool


def _notes() -> Path:
    return Path(os.environ["TILL_NOTES"])


def _note(word: str, name: str, key: str) -> None:
    with _notes().open("a") as notes:
        notes.write(f"{os.getpid()} {word} {name} {key}\n")


def _hold(name: str) -> str:
    """Arguments are read when the start has been committed, and before the function is called."""
    if name == "entering" and "enters" not in _notes().read_text():
        _note("enters", name, "-")
        time.sleep(60)
    return name


async def _work(name: str, context: ToolContext) -> str:
    _note("starts", name, context.idempotency_key)
    while not _notes().with_name(f"go-{name}").exists():
        await asyncio.sleep(0.02)
    _note("done", name, context.idempotency_key)
    return f"{name} is done"


@function_tool(effect=Effect.READ)
async def look(name: str, context: ToolContext) -> str:
    """Look into the till."""
    return await _work(name, context)


@function_tool(effect=Effect.IDEMPOTENT)
async def put(name: str, context: ToolContext) -> str:
    """Set what is in the till."""
    return await _work(name, context)


@function_tool(effect=Effect.ONCE)
async def pay(name: Annotated[str, BeforeValidator(_hold)], context: ToolContext) -> str:
    """Pay out of the till, which must never be done twice."""
    return await _work(name, context)
