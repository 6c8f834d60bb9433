"""Where a web search is asked: SearXNG, Brave, Tavily behind one interface."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Protocol, TypeVar

import httpx2
from pydantic import BaseModel, JsonValue, ValidationError

from domain.errors import ToolFailed
from tools.public_http import read_body

MAX_BODY_BYTES = 2_000_000
ASK_SECONDS = 20.0

_A = TypeVar("_A", bound=BaseModel)

_AT_ITS_LIMIT = frozenset({429, 432, 433})
"""Tavily answers 432 and 433 where a plan's or a key's own limit is reached."""


@dataclass(frozen=True)
class SearchResult:
    title: str
    url: str
    snippet: str


class SearchBackend(Protocol):
    async def search(self, query: str) -> Sequence[SearchResult]:
        """Raises ToolFailed, with nothing in it that the backend or the key says."""
        ...


class SearXNG:
    """A metasearch engine of the operator's own (docs.searxng.org/dev/search_api): `GET /search?q=…&format=json`, no key.

    Its `settings.yml` must name `json` under `search.formats`; without that it answers 403. It takes no number of results.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")

    async def search(self, query: str) -> Sequence[SearchResult]:
        request = httpx2.Request("GET", f"{self._base_url}/search", params={"q": query, "format": "json"})
        answer = await _ask(request, _SearXNGAnswer, "SearXNG", refused="its settings.yml must allow search.formats: json")
        return [SearchResult(found.title or "", found.url or "", found.content or "") for found in answer.results]


class Brave:
    """Brave's Web Search API (api-dashboard.search.brave.com/api-reference/web/search/get): `GET /res/v1/web/search` with the
    key in `X-Subscription-Token`; `q` of at most 400 characters, `count` from 1 to 20."""

    def __init__(self, api_key: str, max_results: int, base_url: str) -> None:
        self._api_key = api_key
        self._max_results = max_results
        self._base_url = base_url.rstrip("/")

    async def search(self, query: str) -> Sequence[SearchResult]:
        # Without text_decorations=false the snippets are marked up as HTML.
        params = {"q": query, "count": str(self._max_results), "result_filter": "web", "text_decorations": "false"}
        headers = {"X-Subscription-Token": self._api_key}
        request = _request("GET", f"{self._base_url}/res/v1/web/search", headers, params=params)
        answer = await _ask(request, _BraveAnswer, "Brave")
        found = answer.web.results if answer.web else ()
        return [SearchResult(each.title or "", each.url or "", each.description or "") for each in found]


class Tavily:
    """Tavily's search API, as the `tavily-python` package 0.8 asks it: `POST /search` with the key as bearer token and
    `{query, max_results, search_depth}`, answered by `{results: [{title, url, content, score}]}`."""

    def __init__(self, api_key: str, max_results: int, base_url: str) -> None:
        self._api_key = api_key
        self._max_results = max_results
        self._base_url = base_url.rstrip("/")

    async def search(self, query: str) -> Sequence[SearchResult]:
        body: dict[str, JsonValue] = {"query": query, "max_results": self._max_results, "search_depth": "basic"}
        headers = {"Authorization": f"Bearer {self._api_key}"}
        request = _request("POST", f"{self._base_url}/search", headers, json=body)
        answer = await _ask(request, _TavilyAnswer, "Tavily")
        return [SearchResult(found.title or "", found.url or "", found.content or "") for found in answer.results]


class _Found(BaseModel):
    title: str | None = None
    url: str | None = None
    content: str | None = None


class _SearXNGAnswer(BaseModel):
    results: tuple[_Found, ...]


class _TavilyAnswer(BaseModel):
    results: tuple[_Found, ...]


class _BraveFound(BaseModel):
    title: str | None = None
    url: str | None = None
    description: str | None = None


class _BraveWeb(BaseModel):
    results: tuple[_BraveFound, ...] = ()


class _BraveAnswer(BaseModel):
    web: _BraveWeb | None = None
    """Missing where nothing was found."""


def _request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    params: Mapping[str, str] | None = None,
    json: Mapping[str, JsonValue] | None = None,
) -> httpx2.Request:
    try:
        return httpx2.Request(method, url, headers=dict(headers), params=params, json=json)
    except UnicodeEncodeError:
        # Said without its cause, which would quote the key.
        raise ToolFailed("web search is not set up: its key has characters that no key has") from None


@cache
def _tls() -> ssl.SSLContext:
    """Made once: reading the certificates holds up the event loop for 20 ms."""
    return httpx2.create_ssl_context(trust_env=False)


async def _ask(request: httpx2.Request, shape: type[_A], name: str, refused: str = "its key is wrong or may not search") -> _A:
    """One question. Causes are left out of failures: the client's quote headers, and with them the key."""
    request.headers.update({"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "perdure"})
    try:
        async with httpx2.AsyncClient(verify=_tls(), trust_env=False, timeout=ASK_SECONDS) as client:
            response = await client.send(request, stream=True)
            try:
                _check(response, name, refused)
                body, cut = await read_body(response, MAX_BODY_BYTES, name)
            finally:
                await response.aclose()
    except httpx2.TimeoutException:
        raise ToolFailed(f"{name} did not answer in time; try again later") from None
    except httpx2.HTTPError as error:
        raise ToolFailed(f"{name} cannot be reached ({type(error).__name__}); try again later") from None
    try:
        return shape.model_validate_json(b"" if cut else body)
    except ValidationError:
        raise ToolFailed(f"{name} answered with something that is no search result") from None


def _check(response: httpx2.Response, name: str, refused: str) -> None:
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise ToolFailed(f"{name} refuses the search ({status}): {refused}. Only the operator can change that")
    if status in _AT_ITS_LIMIT:
        raise ToolFailed(f"{name} is at its limit of searches ({status}); try again later, or go on without")
    if status != HTTPStatus.OK:
        raise ToolFailed(f"{name} answered {status}; try again later, or another query")
