"""What tools a server has: asked once in a while, not before every model call."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from mcp.client import Client
from mcp_types import PaginatedRequestParams, Tool
from pydantic import JsonValue
from pydantic_core import to_json

from domain.tools import Effect
from tools.mcp.redaction import Redactor

FRESH_SECONDS = 300.0
RETRY_SECONDS = 15.0
WAIT_SECONDS = 5.0
"""How long a model call waits for a server that nobody has listed yet; asking it goes on meanwhile."""
ASK_SECONDS = 30.0
MAX_SERVERS = 1_000
MAX_PAGES = 100
MAX_LISTED_BYTES = 4_000_000
MAX_SCHEMA_BYTES = 50_000
MAX_DESCRIPTION_CHARS = 4_000
MAX_TOOL_NAME_CHARS = 128


@dataclass(frozen=True)
class ListedTool:
    name: str
    description: str
    input_schema: dict[str, JsonValue]
    effect: Effect


@dataclass(frozen=True)
class Trouble:
    """Why a server's tools are missing. `refused`: it wants other credentials."""

    server: str
    message: str
    refused: bool = False


Listing = tuple[ListedTool, ...]


@dataclass
class _Entry:
    listing: Listing | None = None
    trouble: Trouble | None = None
    due: float = 0.0
    asking: asyncio.Task[None] | None = None


class Listings:
    """The tools of servers by key. What is known is used, and asked for anew behind the caller's back when it is old: while
    a server is away its tools stay, so that a session's model sees the same tools at every call."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def of(self, key: str, server: str, ask: Callable[[], Awaitable[Listing | Trouble]]) -> Listing | Trouble:
        """Never raises. Waits for five seconds at most, and only where nothing is known."""
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        loop = asyncio.get_running_loop()
        if entry.asking is None and loop.time() >= entry.due:
            entry.asking = asyncio.create_task(self._ask(entry, ask))
            self._forget()
        if entry.listing is None and entry.asking is not None and entry.trouble is None:
            await asyncio.wait({entry.asking}, timeout=WAIT_SECONDS)
            if entry.listing is None and entry.trouble is None:
                entry.trouble = Trouble(server, f"it has not listed its tools within {WAIT_SECONDS:g} seconds")
        known = entry.listing if entry.listing is not None else entry.trouble
        assert known is not None
        return known

    def known(self, key: str) -> Trouble | None:
        """Why nothing is known of a server, if that is so."""
        entry = self._entries.get(key)
        return entry.trouble if entry is not None and entry.listing is None else None

    async def close(self) -> None:
        asking = [entry.asking for entry in self._entries.values() if entry.asking is not None]
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)

    async def _ask(self, entry: _Entry, ask: Callable[[], Awaitable[Listing | Trouble]]) -> None:
        found: Listing | Trouble | None = None
        try:
            found = await ask()
        finally:
            entry.asking = None
            ok = isinstance(found, tuple)
            entry.due = asyncio.get_running_loop().time() + (FRESH_SECONDS if ok else RETRY_SECONDS)
        if isinstance(found, Trouble):
            entry.trouble = found
        else:
            entry.listing, entry.trouble = found, None

    def _forget(self) -> None:
        for key in [key for key, entry in self._entries.items() if entry.asking is None][: len(self._entries) - MAX_SERVERS]:
            del self._entries[key]


async def list_tools(client: Client, redactor: Redactor) -> Listing:
    """All pages, by name. Left out: what no vendor would take (names and schemas out of proportion), and what goes beyond
    4 MB. Raises what the package raises."""
    found: dict[str, ListedTool] = {}
    size = 0
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        for tool in page.tools:
            schema_bytes = len(to_json(tool.input_schema))
            size += schema_bytes + len(tool.description or "")
            if size > MAX_LISTED_BYTES:
                break
            if schema_bytes <= MAX_SCHEMA_BYTES and tool.name.isprintable() and 0 < len(tool.name) <= MAX_TOOL_NAME_CHARS:
                found.setdefault(tool.name, _listed(tool, redactor))
        cursor = page.next_cursor
        if cursor is None or size > MAX_LISTED_BYTES:
            break
    return tuple(found[name] for name in sorted(found))


def _listed(tool: Tool, redactor: Redactor) -> ListedTool:
    hints = tool.annotations
    effect = Effect.ONCE
    if hints is not None and hints.read_only_hint:
        effect = Effect.READ
    elif hints is not None and hints.idempotent_hint:
        effect = Effect.IDEMPOTENT
    schema = cast("dict[str, JsonValue]", redactor.json(cast("JsonValue", tool.input_schema)))
    return ListedTool(
        name=tool.name,
        description=redactor.text(tool.description or tool.title or tool.name)[:MAX_DESCRIPTION_CHARS],
        input_schema={**schema, "type": "object"},
        effect=effect,
    )
