"""Built-in tool `web_search`. There only where the operator configured a backend."""

import html
import re

from pydantic import BaseModel, Field

from domain.strict import Strict
from domain.tools import Effect, ToolContext
from tools.search_backends import SearchBackend, SearchResult

MAX_TITLE_CHARS = 200
MAX_URL_CHARS = 2_000
MAX_SNIPPET_CHARS = 600

_SPACE = re.compile(r"\s+")


class WebSearchArguments(Strict):
    query: str = Field(
        min_length=1, max_length=400, description="What to search for, as one would type it into a search engine."
    )


class WebSearch:
    name = "web_search"
    description = "Search the web. You get titles, addresses and short excerpts; use web_fetch to read a page that looks right."
    arguments: type[BaseModel] = WebSearchArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    def __init__(self, backend: SearchBackend, max_results: int) -> None:
        self._backend = backend
        self._max_results = max_results

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, WebSearchArguments)
        found = await self._backend.search(arguments.query)
        usable = [result for result in found if _is_web(result.url)][: self._max_results]
        return "\n\n".join(_shown(number, result) for number, result in enumerate(usable, 1)) or "Nothing was found."


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://")) and len(url) <= MAX_URL_CHARS and not _SPACE.search(url)


def _shown(number: int, result: SearchResult) -> str:
    lines = [f"{number}. {_line(result.title, MAX_TITLE_CHARS) or '(no title)'}", f"   {result.url}"]
    if snippet := _line(result.snippet, MAX_SNIPPET_CHARS):
        lines.append(f"   {snippet}")
    return "\n".join(lines)


def _line(text: str, max_chars: int) -> str:
    """One line of plain text: backends write some characters as HTML does."""
    line = _SPACE.sub(" ", html.unescape(text[: 10 * max_chars])).strip()
    return line if len(line) <= max_chars else f"{line[:max_chars]}…"
