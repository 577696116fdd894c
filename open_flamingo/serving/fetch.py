"""Files from the web, and never from the server's own network: only addresses that were looked at are connected to."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

REDIRECTS = 3
"""Followed at most, each to a URL that is looked at like the first."""
GLOBAL_V6 = ipaddress.ip_network("2000::/3")
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "2002::/16", "2001::/23")))
"""Global by their numbers, but inner ones of protocols, of a cloud's hosts, or of IPv4 inside IPv6."""
WHOLE_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)

FAILURES = (
    *(OSError, ValueError),
    *(httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol),
)
"""What a name, a connection or an answer can be wrong in."""


class Unfetchable(Exception):
    """There is no file for us behind a URL; why is nothing for clients, whom it could tell about the network here."""


class TooLarge(Exception):
    """The file behind a URL has too many bytes."""


Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, the best one first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether an address is one of a single host in the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in GLOBAL_V6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to hosts that are public by all of their addresses, and to an address that was looked at."""

    def __init__(self, resolve: Resolve = resolve, network: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._resolve = resolve
        self._network = network or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address of a host that answers. Raises Unfetchable for a host that is not public."""
        addresses = await self._resolve(host, port)
        if not all(map(is_public, addresses)):
            raise Unfetchable("the host is not public")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        raise Unfetchable("no address of the host answers")


async def fetch(
    url: str, max_bytes: int, timeout: float, network: httpcore2.AsyncNetworkBackend | None = None
) -> bytes:
    """The file behind an http or https URL, within so many seconds in all. Raises Unfetchable and TooLarge."""
    try:
        async with (
            asyncio.timeout(timeout),
            httpcore2.AsyncConnectionPool(network_backend=network or PublicNetwork()) as pool,
        ):
            for _ in range(1 + REDIRECTS):
                found = await _get(pool, url, max_bytes)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
    except FAILURES as error:
        raise Unfetchable(type(error).__name__) from error
    raise Unfetchable("too many redirects")


async def _get(pool: httpcore2.AsyncConnectionPool, url: str, max_bytes: int) -> bytes | str:
    """The file behind a URL, or the address that it is said to be at now."""
    parts = _split(url)
    target = httpcore2.URL(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port,
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )
    headers = [("Host", parts.netloc), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
    async with pool.stream("GET", target, headers=headers) as response:
        known = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if 300 <= response.status < 400 and b"location" in known:
            return known[b"location"]
        if response.status != 200:
            raise Unfetchable(f"status {response.status}")
        if int(known.get(b"content-length", 0)) > max_bytes:
            raise TooLarge
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > max_bytes:
                raise TooLarge
        return bytes(body)


def _split(url: str) -> SplitResult:
    """The parts of a URL that may be fetched. Raises Unfetchable for others."""
    if not WHOLE_URL.fullmatch(url):
        raise Unfetchable("not an http or https URL of printable ASCII")
    parts = urlsplit(url)
    if "@" in parts.netloc or not parts.hostname:
        raise Unfetchable("no plain host")
    return parts
