"""A request on its way: its prompt and images checked, its ask among the others, its answer waited for."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from starlette.requests import Request
from torch import Tensor

from instruction_dataset.records import Record
from open_flamingo.instruction_tuning.data.prompts import split_prompt
from open_flamingo.instruction_tuning.generation import Answer, Prompt, Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.serving.batcher import Ask, Batcher, Closing
from open_flamingo.serving.guard import GONE
from open_flamingo.serving.intake import Limits, RequestError, read_images
from open_flamingo.serving.metrics import Metrics
from open_flamingo.serving.settings import ServeSettings

logger = logging.getLogger("open_flamingo.serving")

Piece = tuple[int, str]
"""An answer's number, and what it goes on with."""
T = TypeVar("T")


class Client:
    """Who waits for an answer, at most for so many seconds from now."""

    def __init__(self, request: Request, seconds: float) -> None:
        self.request, self.seconds = request, seconds
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return self._loop.time() >= self._deadline

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """What work gives; at the time limit it is cancelled, and RequestError raised."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError as error:
            message = f"the answer took longer than {self.seconds:g} seconds"
            raise RequestError(504, message, code="timeout") from error

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, also where the client goes away; the body of its request must have been read."""
        gone, done = asyncio.create_task(_gone(self.request)), asyncio.create_task(self.in_time(work))
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            is_gone = done.cancel()
        if is_gone:
            raise RequestError(GONE, "the client has gone away")
        return done.result()


@dataclass(frozen=True)
class Desk:
    """Where requests are taken in: what answers them, and within which limits."""

    settings: ServeSettings
    inferencer: Inferencer
    batcher: Batcher
    metrics: Metrics
    limits: Limits
    started: int
    """Seconds since 1970."""

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text with more of them than all tokens may have is not worth tokenizing."""
        return max(map(len, self.inferencer.tokenizer.get_vocab()))

    def admit(self, request: Request) -> Client:
        """Who waits for the answer to a request. Raises Busy, before any work is put into one that could not wait."""
        self.batcher.refuse_if_full()
        return Client(request, self.settings.request_timeout)

    def check_model(self, name: str) -> None:
        """Raise RequestError unless `name` is what the model is called."""
        if name != self.settings.name:
            message = f"there is no such model; this server has {self.settings.name}"
            raise RequestError(404, message, code="model_not_found", param="model")

    async def conversation(self, record: Record) -> list[int]:
        """The ids of all that stands before a record's last answer."""
        characters = sum(len(text) for turn in record.turns for text in turn)
        return await self._ids(characters, lambda: self.inferencer.turns.question(record)[0])

    async def written_out(self, prompt: str, images: int) -> list[int]:
        """The ids of a whole prompt."""
        turns, pieces = self.inferencer.turns, split_prompt(prompt)
        if len(pieces) - 1 != images:
            message = f"the prompt holds {len(pieces) - 1} <image> for {images} images: give one for each"
            raise RequestError(400, message, param="prompt")
        return await self._ids(len(prompt), lambda: turns.prompt(pieces))

    async def look(self, sources: Sequence[str], client: Client) -> list[Tensor]:
        """Images as the tower takes them. Raises RequestError, also where the client waits no longer."""
        return await client.unless_gone(read_images(sources, self.limits, self.inferencer.look))

    def new_tokens(self, prompt: Sequence[int], asked: int | None, param: str) -> int:
        """How many tokens an answer may have: those `asked` for, or all that there is room for."""
        most = self.settings.max_new_tokens
        if asked is not None and asked > most:
            raise RequestError(400, f"{param} is at most {most} here", param=param)
        room = self.inferencer.positions - len(prompt) if self.inferencer.positions else most
        return asked if asked is not None else max(1, min(most, room))

    def begin(
        self, client: Client, prompt: Prompt, settings: Settings, answers: int, seed: int | None, *, streams: bool
    ) -> "Exchange":
        """Put a request among the others. Raises RequestError for what cannot be answered, Busy, and Closing."""
        beams = answers * settings.num_beams
        if settings.num_beams > 1 and beams > self.settings.max_beams:
            message = f"num_beams: {beams} beams over all answers are more than {self.settings.max_beams}"
            raise RequestError(400, message, param="num_beams")
        first = random.randrange(2**31) if seed is None else seed
        ask = Ask(prompt, settings, tuple(range(first, first + answers)), is_seed_given=seed is not None)
        exchange = Exchange(self, client, ask, streams=streams)
        self.metrics.prompt_tokens.inc(len(prompt.ids))
        self.metrics.images.inc(len(prompt.images))
        return exchange

    async def _ids(self, characters: int, encode: Callable[[], list[int]]) -> list[int]:
        most = self.settings.max_prompt_tokens
        ids = await asyncio.to_thread(encode) if characters <= most * self.longest_token else None
        if ids is None or len(ids) > most:
            message = f"the prompt is too long: it has more than the {most} tokens that it may have"
            raise RequestError(400, message, code="context_length_exceeded")
        return ids


class Exchange:
    """An ask under way, and what was heard of it."""

    def __init__(self, desk: Desk, client: Client, ask: Ask, *, streams: bool) -> None:
        self.id = uuid.uuid4().hex
        self.desk, self.client, self.ask = desk, client, ask
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()
        self._heard = heard

        # what the ask calls must not know this exchange, and with it the ask: images would stay until the next collection
        def put(piece: Piece | None) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, piece)

        if streams:
            ask.listen = lambda number, text: put((number, text))
        try:
            desk.batcher.submit(ask)
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        ask.future.add_done_callback(lambda _: put(None))

    async def first(self) -> Piece | None:
        """The first piece, or None at the end. Raises RequestError at the time limit, and if the client goes away."""
        try:
            return await self.client.unless_gone(self._heard.get())
        except (RequestError, asyncio.CancelledError):
            await self.close()
            raise

    async def pieces(self, first: Piece | None) -> AsyncIterator[Piece]:
        """The first piece and all that follow it. Raises RequestError at the time limit."""
        piece = first
        while piece is not None:
            yield piece
            piece = await self.client.in_time(self._heard.get())

    def answers(self) -> list[Answer]:
        """The answers, at the end. Raises Closing, or RequestError for what went wrong inside."""
        error = self.ask.future.exception()
        if error is None:
            return self.ask.future.result()
        if isinstance(error, Closing):
            raise error
        logger.error("request %s failed", self.id, exc_info=error)
        raise RequestError(500, f"no answer could be made; the server's log says why, at {self.id}")

    async def close(self) -> None:
        """Nobody waits any more; an answer that is not done is given up."""
        if not self.ask.future.done():
            self.desk.batcher.cancel(self.ask)
            reason = "late" if self.client.is_late else "gone"
            self.desk.metrics.abandoned.labels(reason).inc()
            logger.info("request %s is given up: %s", self.id, reason)


async def _gone(request: Request) -> None:
    """Return when the client goes away; the body of its request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
