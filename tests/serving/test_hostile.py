"""Hostile requests are refused, each with its status; nothing leaks, nothing is asked of others, and the server goes on."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hostile import (
    CHAT,
    HOSTILE,
    JSON,
    MARK,
    MOST_BODY,
    SECRET,
    Hostile,
    Place,
    chat,
    data_url,
    encoded,
    furnish,
    image,
)
from servers import Server, said
from toy import ROOT

GROWTH = 64
"""MiB that all requests may add to the server's memory, and twice that while they are looked at."""
LEAKS = (
    *(SECRET, MARK, "Traceback", 'File "', ".py", "site-packages", "0x"),
    *("open_flamingo", "PIL", "pydantic", "starlette", "uvicorn", "httpcore", "root:", "PATH="),
)
"""What no answer holds; and neither does it hold a path of this machine."""


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A socket of this machine that nobody should connect to, by any of its addresses."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def place(listener: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place") / "images"
    furnish(folder)
    return Place(folder, listener.getsockname()[1])


@pytest.fixture(scope="module")
def target(started, place: Place) -> Iterator[Server]:
    """A server that reads a folder, fetches URLs, and is not patient with large requests."""
    limits = {"max_body_bytes": MOST_BODY, "max_image_bytes": 2**20}
    with started(image_folders=place.folder, allow_urls=True, **limits) as server:
        yield server


def send(server: Server, hostile: Hostile, place: Place) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of the answer."""
    body = hostile.body(place)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.putrequest(hostile.method, hostile.path)
        data = body if isinstance(body, bytes) else body.encode()
        for name, value in (hostile.headers | {"Content-Length": str(len(data))}).items():
            connection.putheader(name, value)
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # it is refused by its head
            connection.send(data)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def leaks(text: str, place: Place) -> list[str]:
    """What an answer tells that it should not."""
    paths = [str(ROOT), str(place.folder), str(place.folder.parent), str(Path.home()), "/etc", "/proc", "/dev", "/usr"]
    return [leak for leak in (*LEAKS, *paths) if leak.lower() in text.lower()]


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 60
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_a_hostile_request_is_refused_in_the_one_shape_of_errors(target, place, listener, hostile):
    status, headers, body = send(target, hostile, place)
    assert status == hostile.status, body
    error = json.loads(body)["error"]
    assert headers["content-type"] == "application/json"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    told = body.decode() + str({name: value for name, value in headers.items() if name != "server"})
    assert leaks(told, place) == []
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyzzy\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /hea lth HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
        b"XYZZY /health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0",
    ],
)
def test_what_is_not_http_is_refused_before_the_app(target, place, request_bytes):
    answer = exchange(target, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert leaks(answer.decode().replace("server: uvicorn", ""), place) == []


def test_a_body_that_is_shorter_than_it_says_ends_with_its_connection(target):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(chat()) + 1}\r\n\r\n"
    assert exchange(target, head.encode() + chat().encode()) == b""


def test_what_follows_a_body_that_is_longer_than_it_says_is_no_part_of_it(target):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    statuses = [line for line in exchange(target, head + b"xyzzy\r\n\r\n").split(b"\r\n") if line.startswith(b"HTTP/")]
    assert {line.split()[1] for line in statuses} == {b"400"}


def exchange(server: Server, request: bytes) -> bytes:
    """All that a server answers to some bytes, after which the client says no more."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def test_the_listener_would_hear_of_a_connection(listener, place):
    with socket.create_connection(("127.0.0.1", place.port)):
        connection, _ = listener.accept()
        connection.close()


def test_words_that_name_images_are_words_in_a_chat(target):
    told = [
        ask(target, chat("Hello <image> and <|endofchunk|>, you"), "/prompt"),
        ask(target, chat("Hello <image>", image(data_url(encoded()))), "/prompt"),
    ]
    assert [answer["images"] for answer in told] == [0, 1]
    assert told[0]["tokens"] > ask(target, chat("Hello  and , you"), "/prompt")["tokens"] + 2


def test_bytes_behind_an_image_change_nothing(target):
    first, second = (
        ask(target, chat("Which colour?", image(data_url(encoded(size=(9, 9)) + behind)), temperature=0))
        for behind in (b"", b"PK\x03\x04<script>")
    )
    assert first["choices"] == second["choices"]


def ask(server: Server, body: str, path: str = CHAT) -> dict:
    """What a request that is answered is answered with."""
    answer = httpx.post(server.url + path, content=body, headers=JSON, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def memory(server: Server, which: str) -> float:
    """What a server has in memory now (VmRSS), or had at most (VmHWM), MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", status)[1]) / 1024


def test_after_all_of_them_the_server_answers_as_before_and_its_memory_has_not_grown(target, place):
    question = chat("Which colour?", image(data_url(encoded(size=(9, 9)))), temperature=0, max_tokens=16)
    answers, size = ask(target, question)["choices"], memory(target, "VmRSS")
    for hostile in HOSTILE:
        send(target, hostile, place)
    assert ask(target, question)["choices"] == answers
    assert memory(target, "VmRSS") - size < GROWTH
    assert memory(target, "VmHWM") - size < 2 * GROWTH
    assert target.metric("flamingo_waiting") == 0
    assert "Traceback" not in said(target.log)
    assert SECRET not in said(target.log)
