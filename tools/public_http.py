"""HTTP to addresses that operators did not write: only to the public internet, with every answer bounded.

The address comes from a model, which may have been told to by a page it read, or from whoever may make agents, and it is used
from inside the operator's network: see `_addresses` for what it may reach.
"""

import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx2

from domain.errors import ToolFailed
from tools.addresses import Resolver, is_public, resolve

MAX_ADDRESSES = 3
CONNECT_SECONDS = 5.0


class BrokeOff(ToolFailed):
    """The request went out, perhaps, and no whole answer came back."""


class PublicHttp:
    """`allow_hosts` are the `host:port` an operator exempts from the check for public addresses."""

    def __init__(self, allow_hosts: frozenset[str] = frozenset(), resolver: Resolver = resolve) -> None:
        self._allow_hosts = allow_hosts
        self._resolve = resolver
        self._tls = httpx2.create_ssl_context(trust_env=False)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        *,
        subject: str,
        seconds: float,
        content: bytes | None = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """One request; redirects are the caller's. `subject` is what failures are said of, `seconds` the silence that is borne.

        Raises ToolFailed, also for what fails while the answer is being read.
        """
        failure = "no address answers"
        for address in await self._addresses(url):
            # A client for each request: a connection or cookie kept for an address would serve another host on it too.
            timeout = httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
            async with httpx2.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout) as client:
                request = client.build_request(
                    method,
                    # The checked address instead of the name: a second look-up by the client could give another one.
                    url.copy_with(host=address, fragment=None),
                    headers={"Host": url.netloc.decode("ascii"), "User-Agent": "perdure", "Accept-Encoding": "gzip", **headers},
                    content=content,
                    # The certificate is still checked against the name.
                    extensions={"sni_hostname": url.raw_host.decode("ascii")},
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                    failure = str(error) or "it does not answer"
                    continue
                except httpx2.HTTPError as error:
                    raise BrokeOff(f"{subject}: {str(error) or type(error).__name__}") from error
                try:
                    yield response
                    return
                except httpx2.HTTPError as error:
                    raise BrokeOff(f"{subject}: the answer broke off: {str(error) or type(error).__name__}") from error
                finally:
                    await response.aclose()
        raise ToolFailed(f"{subject}: cannot connect: {failure}")

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
            raise ToolFailed(f"{host}: not a public address, which is all that may be reached")
        return usable[:MAX_ADDRESSES]


def web_address(text: str) -> httpx2.URL:
    """A plain http or https address. Raises ToolFailed."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ToolFailed(f"the address is malformed: {error}") from error
    return checked(url)


def checked(url: httpx2.URL) -> httpx2.URL:
    """The address itself. Raises ToolFailed where it is no plain http or https address."""
    if url.scheme not in ("http", "https"):
        raise ToolFailed("only http and https addresses can be used")
    if url.userinfo:
        raise ToolFailed("the address must not contain a user name or password")
    if not url.host or not 1 <= (url.port or 80) <= 65_535:
        raise ToolFailed("the address has no valid host and port")
    return url


async def read_body(response: httpx2.Response, max_bytes: int, subject: str) -> tuple[bytes, bool]:
    """At most `max_bytes` of the body, decompressed, and whether there was more. Raises ToolFailed.

    Decompressed here and not by the client, which unpacks whole chunks: a few hundred bytes of them can be gigabytes.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise ToolFailed(f"{subject} is compressed as {encoding!r}, which was not asked for")
    unpack = None if encoding == "identity" else zlib.decompressobj(wbits=31)
    body = bytearray()
    received = 0
    async for chunk in response.aiter_raw():
        # Counted before unpacking too: a stream of empty gzip blocks never adds to the body.
        received += len(chunk)
        try:
            body += unpack.decompress(chunk, max_bytes + 1 - len(body)) if unpack else chunk
        except zlib.error as error:
            raise ToolFailed(f"{subject} is not valid gzip") from error
        if len(body) > max_bytes or received > max_bytes:
            return bytes(body[:max_bytes]), True
    if unpack and not unpack.eof:
        raise BrokeOff(f"{subject}: the answer broke off")
    return bytes(body), False
