"""The tools that the benched agents call."""

from domain.tools import Effect
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
