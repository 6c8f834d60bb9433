"""Which internet addresses a fetch may connect to, and how a name becomes addresses."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to IP addresses, in the order to try them. Raises OSError."""

_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # not special to IANA, but the platform's own host in every Azure machine
    )
)
_UNICAST_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo carries an IPv4 address within
        "2001:db8::/32",
        "2002::/16",  # 6to4, likewise
        "3fff::/20",
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet (IANA's special-purpose registries, RFC 6890).

    In IPv6 only global unicast does: everything else, among it IPv4-mapped addresses and NAT64 (64:ff9b::/96), may lead back
    to a private IPv4 network.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _SPECIAL_V4)
    return ip.scope_id is None and ip in _UNICAST_V6 and not any(ip in network for network in _SPECIAL_V6)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver, which also takes addresses in their odd spellings (`127.1`, `0x7f000001`)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
