"""Built-in tool `web_fetch`: read a public page.

The address is written by a model that may have been told to by a page it read, and it is used from inside the operator's
network: see `_addresses` for what it may reach.
"""

import zlib
from collections.abc import Sequence
from http import HTTPStatus

import httpx2
from pydantic import BaseModel, Field

from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext
from tools.addresses import Resolver, is_public, resolve

MAX_REDIRECTS = 5
MAX_BODY_BYTES = 1_000_000
MAX_CHARS = 50_000
MAX_ADDRESSES = 3

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/xhtml+xml"})
_CHARSETS = frozenset(
    {
        *("utf-8", "utf8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "ascii", "latin1"),
        *(f"iso-8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)),
        *(f"windows-125{page}" for page in range(9)),
        *("koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"),
    }
)
"""Those in use on the web. Python knows more, and some of them (punycode) take a server's megabyte minutes to decode."""


class WebFetchArguments(Strict):
    url: str = Field(min_length=1, max_length=8_000, description="The http or https address of a public page.")


class WebFetch:
    """`allow_hosts` are the `host:port` an operator exempts from the check for public addresses."""

    name = "web_fetch"
    description = "Fetch a public web page or document by GET and return its text as it was sent (HTML, JSON, XML, plain)."
    arguments: type[BaseModel] = WebFetchArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    def __init__(self, allow_hosts: frozenset[str] = frozenset(), resolver: Resolver = resolve) -> None:
        self._allow_hosts = allow_hosts
        self._resolve = resolver
        self._tls = httpx2.create_ssl_context(trust_env=False)

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, WebFetchArguments)
        url = _parsed(arguments.url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(url)
            if isinstance(answer, str):
                return answer
            url = answer
        raise ToolFailed(f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx2.URL) -> str | httpx2.URL:
        """One request: the page's text, or where it redirects to."""
        failure = "no address answers"
        for address in await self._addresses(url):
            # A client for each request: a connection or cookie kept for an address would serve another host on it too.
            async with httpx2.AsyncClient(verify=self._tls, trust_env=False, timeout=httpx2.Timeout(30, connect=5)) as client:
                request = client.build_request(
                    "GET",
                    # The checked address instead of the name: a second look-up by the client could give another one.
                    url.copy_with(host=address, fragment=None),
                    headers={
                        "Host": url.netloc.decode("ascii"),
                        "User-Agent": "perdure",
                        "Accept": "text/*, application/json, application/xml;q=0.9",
                        "Accept-Encoding": "gzip",
                    },
                    # The certificate is still checked against the name.
                    extensions={"sni_hostname": url.raw_host.decode("ascii")},
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                    failure = str(error) or "it does not answer"
                    continue
                except httpx2.HTTPError as error:
                    raise ToolFailed(f"{url}: {error or type(error).__name__}") from error
                try:
                    return await _answer(url, response)
                except httpx2.HTTPError as error:
                    raise ToolFailed(f"{url}: the answer broke off: {error or type(error).__name__}") from error
                finally:
                    await response.aclose()
        raise ToolFailed(f"{url}: cannot connect: {failure}")

    async def _addresses(self, url: httpx2.URL) -> Sequence[str]:
        """The addresses to try. Only public ones, unless the operator allows the host: loopback, private, link-local
        (where clouds keep credentials), shared and reserved ones are refused, whatever name led there."""
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise ToolFailed(f"{host}: the name cannot be resolved") from error
        allowed = f"{host.lower()}:{port}" in self._allow_hosts
        usable = [address for address in addresses if allowed or is_public(address)]
        if not usable:
            raise ToolFailed(f"{host}: not a public address, which is all that may be fetched")
        return usable[:MAX_ADDRESSES]


def _parsed(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ToolFailed(f"the address is malformed: {error}") from error
    _check(url)
    return url


def _check(url: httpx2.URL) -> None:
    if url.scheme not in ("http", "https"):
        raise ToolFailed("only http and https addresses can be fetched")
    if url.userinfo:
        raise ToolFailed("the address must not contain a user name or password")
    if not url.host or not 1 <= (url.port or 80) <= 65_535:
        raise ToolFailed("the address has no valid host and port")


async def _answer(url: httpx2.URL, response: httpx2.Response) -> str | httpx2.URL:
    if response.status_code in _REDIRECTS and (location := response.headers.get("location")):
        try:
            target = url.join(location)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise ToolFailed(f"{url} redirects to a malformed address") from error
        _check(target)
        return target
    if response.status_code != HTTPStatus.OK:
        raise ToolFailed(f"{url} answered {response.status_code} {response.reason_phrase}".rstrip())
    content_type = response.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if not (media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith(("+json", "+xml"))):
        raise ToolFailed(f"{url} is {media_type or 'of no stated type'}, and only text, JSON, XML and HTML can be read")
    body, cut = await _body(url, response)
    charset = (response.charset_encoding or "utf-8").lower()
    text = body.decode(charset if charset in _CHARSETS else "utf-8", "replace").removeprefix("\ufeff")
    shown = text[:MAX_CHARS]
    note = f"\n[cut: the first {len(shown):,} characters of a longer document]" if cut or len(text) > MAX_CHARS else ""
    return f"{url} ({media_type})\n\n{shown}{note}"


async def _body(url: httpx2.URL, response: httpx2.Response) -> tuple[bytes, bool]:
    """At most 1 MB of the body, decompressed, and whether there was more.

    Decompressed here and not by the client, which unpacks whole chunks: a few hundred bytes of them can be gigabytes.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise ToolFailed(f"{url} is compressed as {encoding!r}, which was not asked for")
    unpack = None if encoding == "identity" else zlib.decompressobj(wbits=31)
    body = bytearray()
    received = 0
    async for chunk in response.aiter_raw():
        # Counted before unpacking too: a stream of empty gzip blocks never adds to the body.
        received += len(chunk)
        try:
            body += unpack.decompress(chunk, MAX_BODY_BYTES + 1 - len(body)) if unpack else chunk
        except zlib.error as error:
            raise ToolFailed(f"{url} is not valid gzip") from error
        if len(body) > MAX_BODY_BYTES or received > MAX_BODY_BYTES:
            return bytes(body[:MAX_BODY_BYTES]), True
    if unpack and not unpack.eof:
        raise ToolFailed(f"{url}: the answer broke off")
    return bytes(body), False
