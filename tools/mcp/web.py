"""MCP over streamable HTTP, with the rules of `web_fetch`: public addresses only, and nothing without bounds."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx2
from mcp.client._transport import TransportStreams  # the public Transport is made of it
from mcp.client.streamable_http import streamable_http_client

from domain.mcp import UrlServer
from tools.addresses import Resolver, is_public, resolve
from tools.mcp.process import MAX_MESSAGE_BYTES

MAX_ADDRESSES = 3
CONNECT_SECONDS = 5.0
_SESSION = "mcp-session-id"


class Network:
    """What agents' servers may be reached. `allow_hosts`: the `host:port` that may although they are private."""

    def __init__(self, allow_hosts: frozenset[str] = frozenset(), resolver: Resolver = resolve) -> None:
        self._allow_hosts = allow_hosts
        self._resolve = resolver
        self.tls = httpx2.create_ssl_context(trust_env=False)

    def allows(self, url: str) -> bool:
        """Whether the operator exempted the host."""
        parts = urlsplit(url)
        return _is_in(self._allow_hosts, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    def refusal(self, server: UrlServer) -> str | None:
        """Why that server can never be reached; None where only trying tells."""
        if self.allows(server.url):
            return None
        parts = urlsplit(server.url)
        if server.secrets and parts.scheme != "https":
            return "Secrets are sent over https only, or to a host:port in mcp_allow_hosts."
        try:
            ip_address(parts.hostname or "")
        except ValueError:
            return None
        return None if is_public(parts.hostname or "") else "Not a public address, nor one in mcp_allow_hosts."

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Those to try. Raises Refused."""
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Refused("its name cannot be resolved") from error
        allowed = _is_in(self._allow_hosts, host, port)
        usable = [address for address in found if allowed or is_public(address)]
        if not usable:
            raise Refused("it has no public address")
        return usable[:MAX_ADDRESSES]


class Refused(httpx2.TransportError):
    """We do not send this, or do not take the answer. The message says why and quotes nothing."""


class WebWire:
    """The connection to one server. `fault`: why it ended, for the model."""

    local = False

    def __init__(self, url: str, headers: Mapping[str, str], network: Network) -> None:
        self.fault: str | None = None
        self.refused = False
        """Whether it wants other credentials."""
        self.session_gone = False
        """Whether it has forgotten the session that we had with it, and does nothing that is asked in it."""
        self.ended = asyncio.Event()
        self._url = url
        self._headers = headers
        self._network = network

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[TransportStreams]:
        # Without a limit between two bytes, for an answer may take as long as its call, which has a limit of its own.
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS, write=30, pool=30)
        headers = {**self._headers, "User-Agent": "perdure", "Accept-Encoding": "identity"}
        client = httpx2.AsyncClient(
            transport=_Guarded(self, self._network), headers=headers, timeout=timeout, trust_env=False, follow_redirects=False
        )
        async with (
            client,
            streamable_http_client(self._url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
        ):
            yield streams

    def note(self, status: int, in_session: bool) -> None:
        """What an answer's status says; the package keeps it to itself."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self.refused = True
            self.fault = f"it answered {status}: its credentials are missing or wrong"
        elif status == HTTPStatus.NOT_FOUND and in_session:
            self.session_gone = True
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.fault = f"it answered {status}"


class _Guarded(httpx2.AsyncBaseTransport):
    """Connects to checked addresses only, and reads no more than a bounded answer."""

    def __init__(self, wire: WebWire, network: Network) -> None:
        self._wire = wire
        self._network = network
        self._inner = httpx2.AsyncHTTPTransport(verify=network.tls, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            response = await self._send(request, host, port)
            if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
                await response.aclose()
                raise Refused("it compressed its answer unasked")
        except httpx2.TransportError as error:
            self._wire.fault = _reason(error)
            raise
        self._wire.note(response.status_code, _SESSION in request.headers)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream)
        return response

    async def _send(self, request: httpx2.Request, host: str, port: int) -> httpx2.Response:
        failure: httpx2.TransportError = Refused("no address answers")
        for address in await self._network.addresses(host, port):
            to_address = httpx2.Request(
                request.method,
                # The checked address instead of the name: a second look-up could give another one.
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                # The certificate is still checked against the name.
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(to_address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MAX_MESSAGE_BYTES:
                raise Refused(f"it sent more than {MAX_MESSAGE_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _reason(error: httpx2.TransportError) -> str:
    """In our own words: the libraries' may quote what was sent."""
    match error:
        case Refused():
            return str(error)
        case httpx2.ConnectTimeout():
            return "it does not answer"
        case httpx2.ConnectError():
            return "no connection can be made to it"
        case _:
            return "the connection broke off"


def _is_in(allowed: frozenset[str], host: str, port: int) -> bool:
    return f"{host.lower()}:{port}" in allowed
