"""The API as the demo sees it: questions over HTTP, answers as they grow, and a clear sentence where it fails."""

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import httpx

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 600.0
"""Seconds of silence after which an answer is given up; the API's own limit is shorter."""
DONE = "[DONE]"
MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError)
"""What it takes to read an answer that is not built as the API builds its answers."""
T = TypeVar("T")


class ApiError(Exception):
    """What the user is told where the API fails: what happened, and what to do; `short` is a word or three of it."""

    def __init__(self, message: str, short: str = "API failed", *, is_passing: bool = False) -> None:
        """It `is_passing` where waiting helps."""
        super().__init__(message)
        self.short, self.is_passing = short, is_passing


class Piece(NamedTuple):
    """What the API said of an answer: the next piece of its text, why it ended, and at its end how long it was."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int | None = None


class ExactPrompt(NamedTuple):
    """What the model gets: the text, with `<image>` where images stand, and its length."""

    text: str
    tokens: int
    images: int


@dataclass(frozen=True)
class Api:
    """An API server; it is spoken to directly, whatever proxies the environment names."""

    url: str
    key: str | None = field(default=None, repr=False)
    _verify: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for what is no address, and for a key that no header can carry."""
        if not is_address(self.url):
            raise ValueError(f"--api {self.url!r} is no address: write it as http://127.0.0.1:8000")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("the key may hold printable ASCII only")

    async def model(self) -> str:
        """The name of the model that is served. Raises ApiError where there is none."""
        return await self._ask("GET", "/v1/models", lambda answer: str(answer["data"][0]["id"]))

    async def ready(self) -> str:
        """The name of the model, once it can answer. Raises ApiError until then."""
        name = await self.model()
        await self._ask("GET", "/ready", dict)
        return name

    async def prompt(self, body: dict[str, Any]) -> ExactPrompt:
        """The exact prompt that the model would get for a request."""

        def read(answer: Any) -> ExactPrompt:
            return ExactPrompt(answer["prompt"], answer["tokens"], answer["images"])

        return await self._ask("POST", "/prompt", read, body)

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[Piece]:
        """The answer to a request, piece by piece; closing the iterator ends its generation."""
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._open("POST", "/v1/chat/completions", asked) as response:
            async for data in events(response.aiter_lines()):
                if data == DONE:
                    return
                try:
                    piece = read_piece(data)
                except MISSHAPEN as error:
                    raise ApiError("The API said something that is no answer. Its own log may say why.") from error
                yield piece
        raise ApiError("The connection to the API broke off in the middle of the answer.")

    async def _ask(self, method: str, path: str, read: Callable[[Any], T], body: dict[str, Any] | None = None) -> T:
        """What `read` makes of an answer. Raises ApiError where that is not what the API of this project would say."""
        async with self._open(method, path, body) as response:
            try:
                return read(json.loads(await response.aread()))
            except MISSHAPEN as error:
                raise _stranger(self.url) from error

    @asynccontextmanager
    async def _open(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx.Response]:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        timeout = httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
        async with httpx.AsyncClient(verify=self._verify, trust_env=False, timeout=timeout) as client:
            try:
                url = self.url.rstrip("/") + path
                async with client.stream(method, url, json=body, headers=headers) as response:
                    if response.is_error:
                        await response.aread()
                        raise explain(response)
                    yield response
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise ApiError(
                    f"No API answers at {self.url}. Start it in another terminal with `uvicorn api:app`,"
                    " or say where it is with --api, then try again.",
                    "not running",
                ) from error
            except httpx.ReadTimeout as error:
                raise ApiError(f"The API has said nothing for {READ_TIMEOUT / 60:.0f} minutes. Try again.") from error
            except httpx.DecodingError as error:
                raise _stranger(self.url) from error
            except httpx.TransportError as error:
                raise ApiError("The connection to the API broke off. Try again.") from error


def is_address(url: str) -> bool:
    """Whether a URL can be asked."""
    try:
        parts = httpx.URL(url)
        return parts.scheme in ("http", "https") and bool(parts.host) and (parts.port or 1) in range(1, 65536)
    except (httpx.InvalidURL, ValueError):
        return False


async def events(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The data of server-sent events; one that goes over several lines is joined by line breaks."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def read_piece(data: str) -> Piece:
    """One chunk of an answer. Raises ApiError where it tells of a failure."""
    chunk = json.loads(data)
    if "error" in chunk:
        raise ApiError(f"The API gave up in the middle of the answer: {_sentence(chunk)}")
    tokens = (chunk.get("usage") or {}).get("completion_tokens")
    if not chunk.get("choices"):
        return Piece(tokens=tokens)
    choice = chunk["choices"][0]
    return Piece(choice["delta"].get("content") or "", choice.get("finish_reason"), tokens)


def explain(response: httpx.Response) -> ApiError:
    """What the user is told of an answer that is an error."""
    message = _sentence(_json(response)).replace("max_tokens", "max_new_token")  # as the page calls it
    match response.status_code:
        case 401:
            key = "start the demo with --api_key, or with FLAMINGO_API_KEY in its environment"
            return ApiError(f"The API wants a key: {key}.", "needs a key")
        case 429:
            return ApiError(
                f"The API is busy with other questions. Try again {_wait(response)}.", "busy", is_passing=True
            )
        case 503:
            said = "The API is not ready: it is loading its model, or going down."
            return ApiError(f"{said} Try again {_wait(response)}.", "not ready yet", is_passing=True)
        case 504:
            said = "The API gave up: the answer took longer than it allows."
            return ApiError(f"{said} Try again, or lower max_new_token.", "too slow", is_passing=True)
        case 404 if not message:
            return _stranger(str(response.url.copy_with(path="/")))
        case status if status >= 500:
            return ApiError(f"The API failed ({status}). Its own log says why.")
        case status:
            return ApiError(f"The API refused the question: {message or status}")


def _wait(response: httpx.Response) -> str:
    wait = response.headers.get("Retry-After", "")
    return f"in {wait} second{'s' * (wait != '1')}" if wait.isdecimal() else "in a moment"


def _stranger(url: str) -> ApiError:
    return ApiError(
        f"What answers at {url} is not the API of this project. Say where it is with --api.", "no API there"
    )


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _sentence(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""
