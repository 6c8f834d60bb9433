import asyncio
import codecs
import gzip
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tests.tools.calls import run
from tools.addresses import Resolver, is_public
from tools.registry import Tools
from tools.web_fetch import WebFetch, WebFetchArguments

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A web server on the loopback, and what it was asked."""

    port: int
    requests: list[str] = field(default_factory=list[str])

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def site(
    answer: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Site]:
    handlers: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            handlers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                served.requests.append(request)
                await answer(request.split(" ")[1], writer)
                await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(handle, host, port, ssl=tls)
    served = Site(server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def page(body: bytes = b"hello", status: str = "200 OK", type: str = "text/plain; charset=utf-8", **headers: str) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", f"Content-Type: {type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return answer


def resolver(*answers: Sequence[str], asked: list[str] | None = None) -> Resolver:
    """Gives the answers one after the other, then the last for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        if asked is not None:
            asked.append(f"{host}:{port}")
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def fetch(tool: WebFetch, url: str, context: ToolContext) -> str:
    return await asyncio.wait_for(tool.call(WebFetchArguments(url=url), context), 10)


NOT_PUBLIC = """
    127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
    100.64.0.1 100.100.100.200 192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808
    64:ff9b:1::a00:1 100::1 2001::1 2001:db8::1 2002:7f00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254
    fe80::1 fe80::1%eth0 2606:4700::1111%eth0 fec0::1 ff02::1
    localhost 127.1 2130706433
"""
THIS_MACHINE = """
    127.0.0.1 127.1 0x7f.1 0x7f000001 2130706433 0177.0.0.1 0 localhost LOCALHOST.
    [::1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::]
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::8a"]
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", THIS_MACHINE.split())
async def test_no_spelling_of_this_machine_is_reached(context: ToolContext, host: str) -> None:
    async with site(page()) as served:
        with pytest.raises(ToolFailed):
            await fetch(WebFetch(), f"http://{host}:{served.port}/", context)

    assert served.requests == []


@pytest.mark.parametrize(
    "addresses", [["10.1.2.3"], ["127.0.0.1"], ["::1"], ["169.254.169.254", "fd00::1"], ["64:ff9b::7f00:1"], []]
)
async def test_a_name_with_private_addresses_is_refused(context: ToolContext, addresses: list[str]) -> None:
    with pytest.raises(ToolFailed, match="not a public address"):
        await fetch(WebFetch(resolver=resolver(addresses)), "http://inside.test/", context)


async def test_an_unknown_name(context: ToolContext) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    with pytest.raises(ToolFailed, match="cannot be resolved"):
        await fetch(WebFetch(resolver=unknown), "http://nowhere.test/", context)


async def test_the_connection_goes_to_the_address_that_was_checked(
    context: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.public_http.is_public", "127.0.0.1".__eq__)  # stands for a public address
    asked: list[str] = []
    async with site(page(b"public")) as public, site(page(b"private"), "127.0.0.2", public.port) as private:
        tool = WebFetch(resolver=resolver(["127.0.0.1"], ["127.0.0.2"], asked=asked))
        name = f"rebinding.test:{public.port}"

        assert (await fetch(tool, f"http://{name}/", context)).endswith("\n\npublic")
        with pytest.raises(ToolFailed, match="not a public address"):
            await fetch(tool, f"http://{name}/", context)

    assert asked == [name, name]
    assert private.requests == []
    assert f"\r\nHost: {name}\r\n" in public.requests[0]


async def test_private_addresses_beside_a_public_one_are_passed_over(
    context: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.public_http.is_public", "127.0.0.1".__eq__)
    async with site(page(b"public")) as public, site(page(b"private"), "127.0.0.2", public.port) as private:
        tool = WebFetch(resolver=resolver(["127.0.0.2", "127.0.0.1"]))
        assert (await fetch(tool, f"http://both.test:{public.port}/", context)).endswith("\n\npublic")

    assert private.requests == []


async def test_a_dead_address_is_followed_by_the_next(context: ToolContext) -> None:
    async with site(page()) as served:
        name = f"two.test:{served.port}"
        tool = WebFetch(frozenset({name}), resolver(["127.0.0.9", "127.0.0.1"]))
        assert (await fetch(tool, f"http://{name}/", context)).endswith("\n\nhello")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_checked_like_the_first_address(context: ToolContext, status: str) -> None:
    async with site(page()) as inside, site(page(status=status, Location=f"http://127.0.0.1:{inside.port}/x")) as outside:
        with pytest.raises(ToolFailed, match="not a public address"):
            await fetch(WebFetch(frozenset({outside.at})), f"http://{outside.at}/", context)
        assert inside.requests == []

        text = await fetch(WebFetch(frozenset({outside.at, inside.at})), f"http://{outside.at}/", context)
        assert text == f"http://{inside.at}/x (text/plain)\n\nhello"


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "data:text/plain,hi",
        "ftp://example.com/",
        "gopher://x/",
        "http://a:b@{at}/",
        "//a@{at}/",
        "http://[::1",
    ],
)
async def test_redirects_to_what_is_no_plain_web_address(context: ToolContext, location: str) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        await page(status="302 Found", Location=location.format(at=served.at))("/", writer)

    async with site(answer) as served:
        with pytest.raises(ToolFailed):
            await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
    assert len(served.requests) == 1


async def test_redirects_end(context: ToolContext) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        left = int(path[1:])
        here = page(status="302 Found", Location=f"/{left - 1}", Set_Cookie="a=b") if left else page()
        await here(path, writer)

    async with site(answer) as served:
        tool = WebFetch(frozenset({served.at}))
        assert (await fetch(tool, f"http://{served.at}/5", context)).endswith("hello")
        with pytest.raises(ToolFailed, match="more than 5 redirects"):
            await fetch(tool, f"http://{served.at}/6", context)
    assert not any("cookie" in request.lower() for request in served.requests)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "data:text/html,<p>hi",
        "ftp://{at}/",
        "{at}",
        "http://",
        "http://user@{at}/",
        "http://user:pw@{at}/",
        "http://@[::1",
        "javascript:1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://a b/",
        "http://" + "x" * 300 + ".test/",
        "http://127.0.0.1\\@{at}/",
    ],
)
async def test_malformed_addresses(context: ToolContext, url: str) -> None:
    async with site(page()) as served:
        with pytest.raises(ToolFailed):
            await fetch(WebFetch(frozenset({served.at})), url.format(at=served.at), context)
    assert served.requests == []


async def test_proxies_of_the_environment_are_not_used(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with site(page()) as served:
        assert (await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)).endswith("hello")


@pytest.mark.parametrize(
    ("type", "body", "text"),
    [
        ("text/plain; charset=iso-8859-1", "grüße “€”".encode("cp1252"), "grüße “€”"),
        ("text/html; charset=iso-8859-1", "<p>grüße</p>".encode("latin1"), "grüße"),
        ("text/html", '<meta charset="windows-1251"><p>лёд</p>'.encode("cp1251"), "лёд"),
        (
            "text/html",
            b'<meta http-equiv=Content-Type content="text/html; charset=euc-kr"><p>' + "한국".encode("euc-kr"),
            "한국",
        ),
        ("text/html", codecs.BOM_UTF16_LE + "<p>grüße".encode("utf-16le"), "grüße"),
        ("text/html; charset=utf-8", "<meta charset=big5><p>grüße".encode(), "grüße"),
        ("application/xhtml+xml", b'<?xml version="1.0"?><html><body><p>a &amp; b</p></body></html>', "a & b"),
        ("text/plain", "\ufeffgrüße".encode(), "grüße"),
        ("application/json", b'{"a": 1}', '{"a": 1}'),
        ("application/problem+json; charset=UTF-8", b"{}", "{}"),
        ("image/svg+xml", b"<svg/>", "<svg/>"),
        ("text/plain; charset=punycode", b"a-b", "a-b"),
        ("text/plain; charset=no-such", b"\xff", "\ufffd"),
    ],
)
async def test_text_is_decoded(context: ToolContext, type: str, body: bytes, text: str) -> None:
    async with site(page(body, type=type)) as served:
        answer = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
    assert answer.partition("\n\n")[2] == text


async def test_a_web_page_becomes_markdown(context: ToolContext) -> None:
    pages = Path(__file__).with_name("pages")
    for source in sorted(pages.glob("*.html")):
        async with site(page(source.read_bytes(), type="text/html")) as served:
            answer = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/dir/page.html", context)

        assert answer.replace(served.at, "host") == source.with_suffix(".txt").read_text().rstrip("\n"), source


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<div>" * 50_000 + "deep", "deep"),
        ("<div>" * 300 + "deep", "deep"),
        ("<p>" + " \n" * 500_000 + "x", "x"),
        ("<p>" + "\u00a0" * 500_000 + "x", "x"),
        ("<table><tr>" + "<td colspan=1000000>a" * 1_000 + "</table>", "| a | a |"),
        ("<blockquote>" * 2_000 + "deep", "deep"),
        ("<main></main><p>a script would have filled the other", "a script would have filled the other"),
        ("", "[the page has no text: it may need a browser]"),
    ],
)
async def test_tangled_pages_end(context: ToolContext, html: str, shown: str) -> None:
    async with site(page(html.encode(), type="text/html; charset=utf-8")) as served:
        answer = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
    assert shown in answer


async def test_a_page_that_takes_too_long_is_given_up_and_holds_nobody_up(
    context: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.page.PAGE_SECONDS", 0.3)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async with site(page(b"<ul><li>" * 240_000, type="text/html")) as served:
        counting = asyncio.create_task(count())
        with pytest.raises(ToolFailed, match=r"takes longer than 0\.3 seconds to read"):
            await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
        counting.cancel()
    assert turns > 5
    assert not [child for child in psutil.Process().children(recursive=True) if "html_process" in " ".join(child.cmdline())]


async def test_a_long_page_is_cut(context: ToolContext) -> None:
    async with site(page(b"<p>" + b"word " * 390_000, type="text/html")) as served:
        answer = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
    assert answer.endswith("[cut: the first 50,000 characters of a longer document]")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (page(type="application/pdf"), "is application/pdf, and only text"),
        (page(type="image/png"), "is image/png, and only text"),
        (page(type="application/octet-stream"), "is application/octet-stream"),
        (page(type=""), "no stated type"),
        (page(status="404 Not Found"), "answered 404 Not Found"),
        (page(status="500 Oops"), "answered 500"),
        (page(Content_Encoding="br"), "compressed as 'br'"),
        (page(gzip.compress(gzip.compress(b"x")), Content_Encoding="gzip, gzip"), "compressed as"),
        (page(b"no gzip", Content_Encoding="gzip"), "not valid gzip"),
        (page(gzip.compress(b"hello" * 1000)[:-20], Content_Encoding="gzip"), "broke off"),
    ],
)
async def test_what_is_refused(context: ToolContext, answer: Answer, reason: str) -> None:
    async with site(answer) as served:
        with pytest.raises(ToolFailed, match=reason):
            await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)


async def test_a_body_that_breaks_off(context: ToolContext) -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf")

    async with site(answer) as served:
        with pytest.raises(ToolFailed, match="broke off"):
            await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)


async def test_gzip_is_read(context: ToolContext) -> None:
    async with site(page(gzip.compress(b"hello" * 1000), Content_Encoding="gzip")) as served:
        answer = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)
    assert answer.endswith("\n\n" + "hello" * 1000)


async def test_a_gzip_bomb_is_cut_without_being_unpacked(context: ToolContext) -> None:
    bomb = gzip.compress(bytes([65]) * 64_000_000)
    async with site(page(bomb, Content_Encoding="gzip")) as served:
        tool = WebFetch(frozenset({served.at}))
        tracemalloc.start()
        try:
            answer = await fetch(tool, f"http://{served.at}/", context)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert len(bomb) < 100_000
    assert answer.endswith("[cut: the first 50,000 characters of a longer document]")
    assert peak < 16_000_000


EMPTY_GZIP_BLOCKS = zlib.compressobj(wbits=31).flush(zlib.Z_FULL_FLUSH)[:10] + b"\x00\x00\x00\xff\xff" * 2000


@pytest.mark.parametrize(
    ("head", "chunk"),
    [("", b"x" * 10_000), ("Content-Encoding: gzip\r\n", EMPTY_GZIP_BLOCKS)],
    ids=["plain", "empty gzip blocks"],
)
async def test_an_endless_body_is_cut(context: ToolContext, head: str, chunk: bytes) -> None:
    sent = 0

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{head}\r\n".encode())
        writer.write(chunk)
        while True:
            writer.write(chunk if not head else EMPTY_GZIP_BLOCKS[10:])
            await writer.drain()
            sent += len(chunk)

    async with site(answer) as served:
        answer_text = await fetch(WebFetch(frozenset({served.at})), f"http://{served.at}/", context)

    assert "[cut: the first " in answer_text
    assert sent < 30_000_000  # what fits into the buffers in between


async def _silent(_: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _drop_by_drop(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("answer", [_silent, _drop_by_drop])
async def test_a_slow_server_is_given_up(context: ToolContext, answer: Answer) -> None:
    async with site(answer) as served:
        tool = WebFetch(frozenset({served.at}))
        assert tool.timeout_seconds == 30
        tool.timeout_seconds = 0.3
        outcome = await run(Tools([tool]), "web_fetch", {"url": f"http://{served.at}/"}, None, context)

    assert (outcome.content, outcome.is_error) == ("web_fetch took longer than 0.3 seconds", True)


async def test_certificates_are_checked_against_the_name(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Path(__file__).with_name("secure.test.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def trust(trust_env: bool) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=certificate)

    async with site(page(), tls=tls) as served:
        names = [f"{host}:{served.port}" for host in ("secure.test", "other.test")]
        hosts, here = frozenset(names), resolver(["127.0.0.1"])
        untrusting = WebFetch(hosts, here)
        monkeypatch.setattr(httpx2, "create_ssl_context", trust)
        trusting = WebFetch(hosts, here)

        assert (await fetch(trusting, f"https://{names[0]}/", context)).endswith("hello")
        for tool, name in ((trusting, names[1]), (untrusting, names[0])):
            with pytest.raises(ToolFailed, match="certificate"):
                await fetch(tool, f"https://{name}/", context)

    assert len(served.requests) == 1
