import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tests.tools.site import fetch, page, resolver, site
from tools.addresses import is_public
from tools.web_fetch import WebFetch

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
