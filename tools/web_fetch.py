"""Built-in tool `web_fetch`: read a public page."""

import codecs
import re
from http import HTTPStatus

import httpx2
from pydantic import BaseModel, Field

from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext
from tools.addresses import Resolver, resolve
from tools.page import PageReader
from tools.public_http import PublicHttp, checked, read_body, web_address

MAX_REDIRECTS = 5
MAX_BODY_BYTES = 1_000_000
MAX_HTML_BYTES = 2_000_000
"""More than of other types: most of a page is markup."""
MAX_CHARS = 50_000
READ_SECONDS = 30.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/x-ndjson", "application/yaml"})
_CHARSETS = frozenset(
    {
        *("utf-8", "utf8", "utf-16", "utf-16le", "utf-16be"),
        *(f"iso-8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
        *(f"windows-125{page}" for page in range(9)),
        *("koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"),
    }
)
"""Those in use on the web. Python knows more, and some of them (punycode) take a server's megabyte minutes to decode."""
_ALSO_CALLED = {
    **dict.fromkeys(("us-ascii", "ascii", "latin1", "iso-8859-1"), "windows-1252"),
    "iso-8859-9": "windows-1254",
}
"""As browsers read these labels (encoding.spec.whatwg.org)."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16le"), (codecs.BOM_UTF16_BE, "utf-16be"))
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}[\"']?([\w-]{1,40})", re.IGNORECASE)
_META_WITHIN = 1024


class WebFetchArguments(Strict):
    url: str = Field(min_length=1, max_length=8_000, description="The http or https address of a public page.")


class WebFetch:
    """See `PublicHttp` for the arguments."""

    name = "web_fetch"
    description = (
        "Fetch a public web page or document by GET. Of a web page you get the main content as Markdown, with its links; "
        "JSON, XML and plain text as they were sent. PDF, images and other binary files cannot be read."
    )
    arguments: type[BaseModel] = WebFetchArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    def __init__(self, allow_hosts: frozenset[str] = frozenset(), resolver: Resolver = resolve) -> None:
        self._http = PublicHttp(allow_hosts, resolver)
        self._pages = PageReader()

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, WebFetchArguments)
        url = web_address(arguments.url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(url)
            if isinstance(answer, str):
                return answer
            url = answer
        raise ToolFailed(f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx2.URL) -> str | httpx2.URL:
        """One request: the page's text, or where it redirects to."""
        accept = {"Accept": "text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.9"}
        async with self._http.send("GET", url, accept, subject=str(url), seconds=READ_SECONDS) as response:
            if target := _redirect(url, response):
                return target
            media_type = _readable(url, response)
            html = media_type in _HTML_TYPES
            body, cut = await read_body(response, MAX_HTML_BYTES if html else MAX_BODY_BYTES, str(url))
        text = body.decode(_charset(response, body, html), "replace").removeprefix("\ufeff")
        if html:
            page = await self._pages.read(str(url), text, MAX_CHARS)
            title = f"Title: {page.title}\n" if page.title else ""
            shown = page.text or "[the page has no text: it may need a browser]"
            return f"{url}\n{title}\n{shown}{_note(page.text, cut or page.cut)}"
        shown = text[:MAX_CHARS]
        return f"{url} ({media_type})\n\n{shown}{_note(shown, cut or len(text) > MAX_CHARS)}"


def _note(shown: str, cut: bool) -> str:
    return f"\n[cut: the first {len(shown):,} characters of a longer document]" if cut else ""


def _redirect(url: httpx2.URL, response: httpx2.Response) -> httpx2.URL | None:
    location = response.headers.get("location")
    if response.status_code not in _REDIRECTS or not location:
        return None
    try:
        return checked(url.join(location))
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ToolFailed(f"{url} redirects to a malformed address") from error


def _readable(url: httpx2.URL, response: httpx2.Response) -> str:
    """The media type, where it is one that can be read."""
    if response.status_code != HTTPStatus.OK:
        raise ToolFailed(f"{url} answered {response.status_code} {response.reason_phrase}".rstrip())
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    known = media_type.startswith("text/") or media_type in _TEXT_TYPES | _HTML_TYPES
    if not (known or media_type.endswith(("+json", "+xml"))):
        raise ToolFailed(f"{url} is {media_type or 'of no stated type'}, and only text, JSON, XML and HTML can be read")
    return media_type


def _charset(response: httpx2.Response, body: bytes, html: bool) -> str:
    """How to decode it: by its byte order mark, its header, and in HTML by what it says in its first kilobyte."""
    for mark, name in _MARKS:
        if body.startswith(mark):
            return name
    said = response.charset_encoding
    if said is None and html and (meta := _META_CHARSET.search(body[:_META_WITHIN])):
        said = meta[1].decode("ascii", "replace")
    label = (said or "utf-8").lower()
    label = _ALSO_CALLED.get(label, label)
    return label if label in _CHARSETS else "utf-8"
