"""The tools that the benched agents call."""

import asyncio

from domain.tools import Effect, ToolContext
from tools.functions import function_tool

PAGE = "All work and no play makes a long page. " * 125
"""5,000 characters."""


@function_tool(effect=Effect.READ)
async def note() -> str:
    """Answer at once."""
    return "ok"


@function_tool(effect=Effect.READ)
async def page() -> str:
    """Answer at once, with 5 KB."""
    return PAGE


@function_tool(effect=Effect.READ)
async def dream(context: ToolContext) -> str:
    """Sleep until somebody stops it, and leave a file behind."""
    try:
        await asyncio.sleep(600)
    finally:
        context.directory.mkdir(parents=True, exist_ok=True)
        (context.directory / "woken").touch()
    return "slept"
