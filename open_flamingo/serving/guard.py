"""What stands before the app: who may ask, from which web pages, and how much. Plain ASGI, each for HTTP alone."""

import asyncio
import hmac
import ipaddress
import json
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_flamingo.serving.schemas import error_body

OPEN_PATHS = ("/health", "/ready")
"""For those who look after the server, and have no key."""
BODY_TIMEOUT = 60.0
"""Seconds that the body of a request may take to come."""
GONE = 499
"""No standard has a status for a client that does not wait for its answer; nginx logs this one."""
DIGITS = 18
"""Of a length; with more of them a number is too large anyway."""


class BodyLimit:
    """Reads a request's body whole before the app sees any of it; 413 if it is too large, 408 if it does not come."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float = BODY_TIMEOUT) -> None:
        self.app, self.max_bytes, self.timeout = app, max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        lengths = (length[:DIGITS] for length in headers(scope, b"content-length") if length.isdigit())
        is_announced = any(int(length) > self.max_bytes for length in lengths)
        try:
            async with asyncio.timeout(self.timeout):
                body = None if is_announced else await self._read(receive)
        except TimeoutError:
            await refuse(send, 408, "the body of the request did not come in time", "request_timeout")
            return
        except ConnectionError:
            await refuse(send, GONE, "the client has gone away", "gone")  # nobody hears it, but it is counted
            return
        if body is None:
            await refuse(send, 413, f"the body has more than {self.max_bytes} bytes", "request_too_large")
            return
        await self.app(scope, _received(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, None where it is too large. Raises ConnectionError where the client goes away."""
        chunks, size, has_more = [], 0, True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_bytes:
                return None
            has_more = message.get("more_body", False)
        return b"".join(chunks)


class ApiKey:
    """401 for requests that do not bring the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_right(scope):
            await self.app(scope, receive, send)
            return
        message = "this server wants its key, in the header `Authorization: Bearer KEY`"
        await refuse(send, 401, message, "invalid_api_key", (b"www-authenticate", b"Bearer"))

    def _is_right(self, scope: Scope) -> bool:
        kind, _, key = b",".join(headers(scope, b"authorization")).partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key)


class SameOrigin:
    """403 for requests from web pages of others, which could otherwise use a server on their visitor's machine.

    A page may call if it is in `origins`, or comes from this server itself under an address or as localhost: a name
    proves nothing, for whoever owns it can let it point to this machine once the page is there.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...] = ()) -> None:
        self.app, self.origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not all(self._is_known(origin, scope) for origin in headers(scope, b"origin")):
            await refuse(send, 403, "web pages of this origin may not use this server", "origin_not_allowed")
            return
        await self.app(scope, receive, send)

    def _is_known(self, value: bytes, scope: Scope) -> bool:
        origin = value.decode("latin-1").lower()
        if origin in self.origins:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        hosts = [host.decode("latin-1").lower() for host in headers(scope, b"host")]
        return hosts == [page.netloc] and _is_not_a_name(page.hostname or "")


def _is_not_a_name(host: str) -> bool:
    try:
        return host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def headers(scope: Scope, name: bytes) -> list[bytes]:
    """All values of a header, whose name is in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def _received(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole body in one piece, and then goes on with what comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def refuse(send: Send, status: int, message: str, code: str, *further: tuple[bytes, bytes]) -> None:
    """Answer with an error in the one shape."""
    body = json.dumps(error_body(status, message, code)).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *further]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
