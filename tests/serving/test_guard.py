"""Who may not ask, or asks too much, is told so before the app hears of it; all others reach it as they came."""

import asyncio
import json
from collections.abc import Iterable

import pytest

from open_flamingo.serving.guard import ApiKey, BodyLimit, SameOrigin

Headers = dict[str, str]


class App:
    """Answers with what it gets; remembers the messages that it received."""

    def __init__(self) -> None:
        self.received: list[dict] = []

    async def __call__(self, scope, receive, send) -> None:
        while not self.received or self.received[-1].get("more_body"):
            self.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.received[0]["body"]})


def ask(app, *chunks: bytes, path: str = "/", headers: Iterable[tuple[str, str]] = (), ends: bool = True):
    """The status and headers of the answer to a request, and its body; None where the app sends nothing."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ends:
        messages = [*messages[:-1], {"type": "http.request", "body": chunks[-1] if chunks else b"", "more_body": False}]
    sent: list[dict] = []

    async def receive() -> dict:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait() if ends is None else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "path": path, "headers": encoded}
    asyncio.run(app(scope, receive, send))
    if not sent:
        return None
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def refusal(answer, status: int) -> str:
    """The code of an error, which has the one shape."""
    assert answer[0] == status
    assert answer[1][b"content-type"] == b"application/json"
    assert int(answer[1][b"content-length"]) == len(answer[2])
    error = json.loads(answer[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


def test_a_body_reaches_the_app_whole_and_then_so_does_the_end_of_the_connection():
    inner = App()
    assert ask(BodyLimit(inner, 6), b"ab", b"", b"cdef")[2] == b"abcdef"

    async def listen(scope, receive, send) -> None:
        heard.extend([await receive(), await receive()])

    heard: list[dict] = []
    ask(BodyLimit(listen, 6), b"ab")
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    ("chunks", "headers"),
    [
        ([b"abcd", b"efg"], []),
        ([b"abcdefg"], [("Content-Length", "2")]),
        ([b""], [("Content-Length", "7")]),
        ([b""], [("Content-Length", "9" * 5000)]),
        ([b""], [("Content-Length", "1"), ("Content-Length", "7")]),
    ],
)
def test_a_body_that_is_too_large_or_says_so_never_reaches_the_app(chunks, headers):
    inner = App()
    assert refusal(ask(BodyLimit(inner, 6), *chunks, headers=headers), 413) == "request_too_large"
    assert inner.received == []


def test_a_body_that_does_not_come_is_not_waited_for():
    inner = App()
    assert refusal(ask(BodyLimit(inner, 6, timeout=0.01), b"ab", ends=None), 408) == "request_timeout"
    assert inner.received == []


def test_a_client_that_goes_away_before_its_body_has_come_never_reaches_the_app():
    inner = App()
    assert refusal(ask(BodyLimit(inner, 6), b"ab", ends=False), 499) == "gone"
    assert inner.received == []


@pytest.mark.parametrize("value", ["Bearer s\u00e9cret", "bearer s\u00e9cret", "Bearer  s\u00e9cret "])
def test_the_key_opens(value):
    assert ask(ApiKey(App(), "s\u00e9cret"), headers=[("Authorization", value)])[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "secret")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Basic secret")],
        [("Authorization", "Bearer secre")],
        [("Authorization", "Bearer secrets")],
        [("Authorization", "Bearer wrong"), ("Authorization", "Bearer secret")],
        [("X-Api-Key", "secret")],
    ],
)
def test_nothing_else_opens_but_what_looks_after_the_server(headers):
    guarded = ApiKey(App(), "secret")
    for path in ("/", "/v1/chat/completions", "/metrics", "/health/", "//health", "/HEALTH"):
        answer = ask(guarded, path=path, headers=headers)
        assert refusal(answer, 401) == "invalid_api_key"
        assert answer[1][b"www-authenticate"] == b"Bearer"
    assert [ask(ApiKey(App(), "secret"), path=path, headers=headers)[0] for path in ("/health", "/ready")] == [200, 200]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "anything"),
        ("http://127.0.0.1:1234", "127.0.0.1:1234"),
        ("http://localhost:1234", "LocalHost:1234"),
        ("http://[::1]:1234", "[::1]:1234"),
        ("https://demo.example", "127.0.0.1:1234"),
        ("https://Demo.example", "model.example"),
    ],
)
def test_pages_of_the_server_itself_and_those_that_are_named_may_use_it(origin, host):
    headers = [("Host", host), *([("Origin", origin)] if origin else [])]
    assert ask(SameOrigin(App(), ("https://demo.example",)), headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("origins", "host"),
    [
        (["http://page.example"], "127.0.0.1:1234"),
        (["http://localhost:3000"], "localhost:1234"),
        (["http://rebound.example:1234"], "rebound.example:1234"),
        (["http://127.0.0.1.page.example"], "127.0.0.1.page.example"),
        (["https://demo.example.page.example"], "127.0.0.1:1234"),
        (["http://demo.example"], "127.0.0.1:1234"),
        (["null"], "127.0.0.1:1234"),
        ([""], ""),
        (["http://[::1"], "[::1"),
        (["http://page.example", "http://127.0.0.1:1234"], "127.0.0.1:1234"),
        (["http://127.0.0.1:1234", "https://page.example"], "127.0.0.1:1234"),
    ],
)
def test_pages_of_others_may_not(origins, host):
    inner = App()
    headers = [("Host", host), *(("Origin", origin) for origin in origins)]
    answer = ask(SameOrigin(inner, ("https://demo.example",)), headers=headers)
    assert refusal(answer, 403) == "origin_not_allowed"
    assert inner.received == []


def test_what_is_not_http_passes():
    passed = []

    async def inner(scope, receive, send) -> None:
        passed.append(scope)

    for guarded in (BodyLimit(inner, 1), ApiKey(inner, "secret"), SameOrigin(inner)):
        asyncio.run(guarded({"type": "lifespan"}, None, None))
    assert passed == [{"type": "lifespan"}] * 3
