"""Files come from public addresses alone, and no connection is made to any other."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore2
import pytest

from open_flamingo.serving.fetch import PublicNetwork, TooLarge, Unfetchable, fetch, is_public

PUBLIC = "93.184.215.14"
"""Stands for the host of a test, to which no connection is made."""


@contextmanager
def web(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[PublicNetwork, list[tuple[str, int]]]]:
    """The internet, with one public host, and one whose second address is this machine's; and who was connected to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, head, body = answers[self.path]
            self.send_response(status)
            for name, value in head.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Wire(httpcore2.AnyIOBackend):
        async def connect_tcp(self, host, port, *further, **options):
            connected.append((host, port))
            return await super().connect_tcp("127.0.0.1", server.server_port, *further, **options)

    async def resolve(host: str, port: int) -> list[str]:
        return {"images.example": [PUBLIC], "two.example": [PUBLIC, "127.0.0.1"]}.get(host, [host])

    connected: list[tuple[str, int]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield PublicNetwork(resolve, Wire()), connected
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(url: str, network: PublicNetwork | None, max_bytes: int = 1000) -> bytes:
    return asyncio.run(fetch(url, max_bytes, 30, network))


def test_a_file_is_fetched_from_the_address_that_was_looked_at():
    with web({"/a.png?b=1": (200, {}, b"file")}) as (network, connected):
        assert get("http://images.example/a.png?b=1", network) == b"file"
    assert connected == [(PUBLIC, 80)]


def test_redirects_are_followed_to_public_hosts_alone():
    answers = {
        "/moved": (302, {"Location": "/file"}, b""),
        "/file": (200, {}, b"file"),
        "/in": (302, {"Location": "http://127.0.0.1/file"}, b""),
        "/own": (302, {"Location": "file:///etc/hostname"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
        "/gone": (404, {}, b"file"),
    }
    with web(answers) as (network, connected):
        assert get("http://images.example/moved", network) == b"file"
        for path in ("in", "own", "round", "gone"):
            with pytest.raises(Unfetchable):
                get(f"http://images.example/{path}", network)
        with pytest.raises(Unfetchable):
            get("http://two.example/file", network)
    assert {host for host, _ in connected} == {PUBLIC}


def test_no_more_is_fetched_than_an_image_may_have():
    answers = {"/said": (200, {"Content-Length": "1001"}, b""), "/unsaid": (200, {}, bytes(1001))}
    with web(answers) as (network, _):
        for path in answers:
            with pytest.raises(TooLarge):
                get(f"http://images.example{path}", network)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://images.example/",
        "http:///file",
        "http://",
        "http://[::1/",
        "http://user:word@images.example/",
        "http://images.example@127.0.0.1/",
        "http://images.example:0x50/",
        "http://images.example:99999/",
        "http://images.example/a\r\nX: y",
        "http://images.example/\u00e9",
        "http://images.exam\tple/",
        f"http://{'a' * 70}.example/",
    ],
)
def test_urls_that_are_not_plain_are_never_asked_for(url):
    with web({}) as (network, connected), pytest.raises(Unfetchable):
        get(url, network)
    assert connected == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("100.100.100.200", "168.63.129.16", "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2001::1", "2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1"),
        *("ff02::1", "100::1"),
    ],
)
def test_addresses_that_are_not_of_the_public_internet_are_known(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "2a00:1450:4001::1"])
def test_addresses_of_the_public_internet_are_known(address):
    assert is_public(address)
