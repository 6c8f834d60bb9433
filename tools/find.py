"""Built-in tools that find files and text in the run's own directory: `glob`, `grep`.

Names and arguments are those of the toolset `agent_toolset_20260401` in the `anthropic` package.
"""

import asyncio
import json
import os
import stat
import sys
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice

from pydantic import BaseModel, Field

from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext
from tools import grep_process
from tools.directory import RunDirectory, explained, split
from tools.grep_process import MAX_ENTRIES, MAX_MATCHES, Order, readable, walk

MAX_PATHS = 500
GREP_SECONDS = 10.0


class GlobArguments(Strict):
    pattern: str = Field(min_length=1, max_length=500, description="For example *.md or **/*.py; ** stands for any folders.")
    path: str = Field(default=".", description="The folder to look in, relative to your directory.")


class GrepArguments(Strict):
    pattern: str = Field(min_length=1, max_length=1_000, description="A regular expression (Python's), tried on each line.")
    path: str = Field(default=".", description="The folder or file to search, relative to your directory.")


class Glob:
    name = "glob"
    description = "List the files in your directory whose path matches a pattern, newest first."
    arguments: type[BaseModel] = GlobArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, GlobArguments)
        return await asyncio.to_thread(_glob, arguments, context)


class Grep:
    name = "grep"
    description = "Search the text files in your directory for a regular expression; returns path:line: text."
    arguments: type[BaseModel] = GrepArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, GrepArguments)
        opening = asyncio.create_task(asyncio.to_thread(_open, arguments.path, context))
        try:
            descriptor = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)  # the thread goes on, and its descriptor would stay open for ever
            raise
        try:
            found = await _search(Order(descriptor=descriptor, pattern=arguments.pattern, path="/".join(split(arguments.path))))
        finally:
            os.close(descriptor)
        if found.error is not None:
            raise ToolFailed(f"the pattern is no regular expression: {found.error}")
        lines = [f"{path}:{number}: {text}" for path, number, text in found.matches] or ["No matches."]
        if found.cut:
            lines.append(f"[cut after {MAX_MATCHES} matches: search a narrower folder or pattern]")
        if found.skipped:
            lines.append(f"[{found.skipped} binary, large or unreadable files were not searched]")
        return "\n".join(lines)


class _Found(BaseModel):
    """`grep_process.Found`, checked."""

    error: str | None
    matches: list[tuple[str, int, str]]
    skipped: int
    cut: bool


def _open(path: str, context: ToolContext) -> int:
    with RunDirectory(context.directory) as directory:
        return directory.open(path)


def _close(opening: asyncio.Task[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


async def _search(order: Order) -> _Found:
    """Run the search in a process of its own, killed when it takes too long or the call is cancelled."""
    process = await asyncio.create_subprocess_exec(
        # No site packages, no user settings, no environment: nothing of the service is in reach of it.
        *(sys.executable, "-I", "-S", grep_process.__file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=(order["descriptor"],),
        env={},
    )
    try:
        async with asyncio.timeout(GREP_SECONDS):
            output, _ = await process.communicate(json.dumps(order).encode())
    except TimeoutError:
        raise ToolFailed(f"the search took longer than {GREP_SECONDS:g} seconds: use a simpler pattern") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ToolFailed("the search ran out of memory or time: use a simpler pattern or a narrower folder")
    return _Found.model_validate_json(output)


def _glob(arguments: GlobArguments, context: ToolContext) -> str:
    base, pattern = split(arguments.path), split(arguments.pattern)
    found: list[tuple[int, str]] = []
    descriptor = _open(arguments.path, context)
    try:
        with explained(arguments.path):
            for entry in islice(walk(descriptor, "/".join(base)), MAX_ENTRIES):
                if stat.S_ISREG(entry.status.st_mode) and _matches(tuple(entry.path.split("/")[len(base) :]), pattern):
                    found.append((-entry.status.st_mtime_ns, readable(entry.path)))
    finally:
        os.close(descriptor)
    lines = [path for _, path in sorted(found)[:MAX_PATHS]] or ["No files match."]
    if len(found) > MAX_PATHS:
        lines.append(f"[cut: {MAX_PATHS} of {len(found)} files]")
    return "\n".join(lines)


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Component by component, each pair tried once: a pattern of many ** must not take forever."""

    @cache
    def match(at: int, rest: int) -> bool:
        if rest == len(pattern):
            return at == len(path)
        if pattern[rest] == "**":
            return match(at, rest + 1) or (at < len(path) and match(at + 1, rest))
        return at < len(path) and fnmatchcase(path[at], pattern[rest]) and match(at + 1, rest + 1)

    return match(0, 0)
