"""What `web_fetch` makes of an answer: text, Markdown, or a refusal, within bounds."""

import asyncio
import codecs
import gzip
import tracemalloc
import zlib
from pathlib import Path

import psutil
import pytest

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tests.tools.calls import run
from tests.tools.site import Answer, fetch, page, site
from tools.registry import Tools
from tools.web_fetch import WebFetch


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
