"""Calling a tool of a registry as the worker does, without an agent."""

from collections.abc import Mapping

from pydantic import JsonValue

from domain.tools import ToolContext
from tools.registry import Tools
from tools.toolbox import ToolOutcome, call_tool, no_such_tool


async def run(
    tools: Tools, name: str, input: Mapping[str, JsonValue], malformed: str | None, context: ToolContext
) -> ToolOutcome:
    offered = {known: tools.offer(known) for known in tools.names}
    return await call_tool(offered[name], input, malformed, context) if name in offered else no_such_tool(name, offered)
