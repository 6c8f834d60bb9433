"""An agent's tools from all their sources, and the one way to call them: whatever happens becomes an answer for the model."""

import asyncio
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from domain.agents import AgentConfig
from domain.errors import ToolFailed
from domain.events import EventPayload
from domain.tools import Effect, OfferedTool, ToolAnswer, ToolContext, ToolSource
from tools.mcp.source import McpTools

MAX_OUTPUT_CHARS = 100_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolOutcome:
    """What the model reads as the result of a tool use, and what else goes into the log with it."""

    content: str
    is_error: bool = False
    events: tuple[EventPayload, ...] = ()


class Toolbox:
    """`mcp` is the last of the sources, and the only one of which some may be missing."""

    def __init__(self, sources: Sequence[ToolSource], mcp: McpTools) -> None:
        self._sources = (*sources, mcp)
        self.mcp = mcp

    async def of(self, config: AgentConfig) -> Mapping[str, OfferedTool]:
        """The agent's tools by name, in an order that stays. Of two with one name the earlier source's is the one."""
        found: dict[str, OfferedTool] = {}
        for source in self._sources:
            for tool in await source.offered(config):
                found.setdefault(tool.name, tool)
        return found


async def call_tool(
    tool: OfferedTool, input: Mapping[str, JsonValue], malformed: str | None, context: ToolContext
) -> ToolOutcome:
    """Call a tool. Never raises but CancelledError, when the caller was cancelled; see `ToolUse` for the arguments."""
    if malformed is not None:
        return failed(f"the arguments are no JSON object: {malformed[:200]}")
    limit = asyncio.timeout(tool.timeout_seconds)
    try:
        async with limit:
            answer = await tool.call(input, context)
            if isinstance(answer, ToolAnswer):
                return ToolOutcome(_storable(answer.text), events=answer.events)
            return ToolOutcome(_storable(answer))
    except ToolFailed as error:
        return failed(error.message)
    except TimeoutError as error:
        if not limit.expired():
            return _unexpected(tool.name, error)
        unknown = "" if tool.effect is Effect.READ else "; whether it had an effect is unknown"
        return failed(f"{tool.name} took longer than {tool.timeout_seconds:g} seconds{unknown}")
    except asyncio.CancelledError as error:
        # A tool may let out the cancellation of something of its own; only the caller's is a cancellation here.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _unexpected(tool.name, error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool is somebody else's code, and its faults must not end the run
        return _unexpected(tool.name, error)


def no_such_tool(name: str, tools: Mapping[str, OfferedTool]) -> ToolOutcome:
    """What a model reads that calls a tool which its agent does not have."""
    return failed(f"there is no tool {name[:100]!r}; there are: {', '.join(tools) or 'none'}")


def failed(message: str) -> ToolOutcome:
    return ToolOutcome(_storable(message), is_error=True)


def _unexpected(name: str, error: BaseException) -> ToolOutcome:
    # Where it happened, but not the exception's text: that may quote the arguments, and logs are no place for them.
    log.error("tool %s failed: %s\n%s", name, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return failed(f"tool failed: {type(error).__name__}")


def _storable(text: str) -> str:
    """Cut to length, without what a database or JSON refuses: NUL and halves of surrogate pairs."""
    whole = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if len(whole) <= MAX_OUTPUT_CHARS:
        return whole
    return f"{whole[:MAX_OUTPUT_CHARS]}\n[cut: the first {MAX_OUTPUT_CHARS:,} of {len(whole):,} characters]"
