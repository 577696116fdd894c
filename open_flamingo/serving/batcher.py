"""Requests that wait are answered together: a bounded queue, and one thread that answers a batch after the other."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple, Protocol

from open_flamingo.instruction_tuning.answering import free_memory, is_out_of_memory
from open_flamingo.instruction_tuning.generation import Answer, Prompt, Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.instruction_tuning.watch import Hear
from open_flamingo.serving.heap import trim_heap

logger = logging.getLogger("open_flamingo.serving")

SMOOTHING = 0.2
"""The weight of the newest batch in the mean time of a batch."""


class Busy(Exception):
    """The queue is full; so many `seconds` from now there may be room, rounded up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(f"the queue is full; try again in {self.seconds} second{'s' if self.seconds > 1 else ''}")


class Closing(Exception):
    """The server is going down, and takes no more requests."""


class Observe(Protocol):
    """Who counts what is answered; called from the thread that answers."""

    def batch(self, rows: int) -> None:
        """A batch of so many rows begins."""

    def answer(self, answer: Answer, *, is_wanted: bool) -> None:
        """An answer is done, or given up since nobody waits for it any more."""


@dataclass(eq=False)
class Ask:
    """A request: one prompt, and as many answers to it as there are seeds."""

    prompt: Prompt
    settings: Settings
    seeds: tuple[int, ...]
    is_seed_given: bool = True
    """The client named the seed, and gets the answers that belong to it; else any draw will do."""
    listen: Callable[[int, str], None] | None = None
    """Takes an answer's number and its next piece of text, in the thread that answers; of beams the whole text."""
    future: Future[list[Answer]] = field(default_factory=Future)
    """Resolves as soon as these answers are done, even if their batch goes on."""
    answers: dict[int, Answer] = field(default_factory=dict)
    said: dict[int, int] = field(default_factory=dict)
    """Characters of each answer that were handed on: a batch that is tried again does not say them twice."""

    @property
    def kind(self) -> Settings:
        """What asks of one batch have in common."""
        return replace(self.settings, max_new_tokens=1)

    def hear(self, number: int) -> Hear:
        """Who listens to one answer, from its beginning."""
        heard = 0

        def listen(piece: str) -> None:
            nonlocal heard
            said = self.said.get(number, 0)
            new = piece[max(0, said - heard) :]
            heard += len(piece)
            if new and self.listen is not None:
                self.said[number] = said + len(new)
                self.listen(number, new)

        return listen

    def finish(self, number: int, answer: Answer) -> None:
        """Take one answer, and resolve with the last of them."""
        if number in self.answers:
            return
        if self.settings.num_beams > 1:
            self.hear(number)(answer.text)
        self.answers[number] = answer
        if len(self.answers) == len(self.seeds) and self.future.set_running_or_notify_cancel():
            self.future.set_result([self.answers[i] for i in range(len(self.seeds))])

    def fail(self, error: BaseException) -> None:
        """Resolve with what went wrong, unless nobody waits any more or all is said."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Row(NamedTuple):
    """One answer under way."""

    ask: Ask
    number: int


class Batcher:
    """Answers asks, those that wait together where their settings allow, the longest waiting first."""

    def __init__(
        self,
        inferencer: Inferencer,
        *,
        batch_size: int,
        batch_tokens: int,
        queue_size: int,
        wait: float = 0.005,
        observe: Observe | None = None,
    ) -> None:
        """A batch has at most `batch_size` answers and, padded, `batch_tokens` tokens; one ask alone may have more tokens.

        A batch that is not full waits until `wait` seconds pass without another ask: clients that were answered together
        ask again together.
        """
        self.inferencer, self.observe = inferencer, observe
        self.batch_size, self.batch_tokens, self.queue_size, self.wait = batch_size, batch_tokens, queue_size, wait
        self._queue: deque[Ask] = deque()
        self._changed = threading.Condition(threading.RLock())  # a signal handler may interrupt whoever holds it
        self._is_closing = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many asks are in the queue."""
        return len(self._queue)

    @property
    def is_open(self) -> bool:
        """Whether asks are taken, and answered."""
        return self._thread.is_alive() and not self._is_closing

    def refuse_if_full(self) -> None:
        """Raise Busy where no further ask can wait."""
        if len(self._queue) >= self.queue_size:
            batches = 1 + len(self._queue) / self.batch_size
            raise Busy(batches * self._seconds)

    def submit(self, ask: Ask) -> None:
        """Put an ask into the queue; Busy where it is full, Closing at the end, ValueError for what cannot be answered."""
        self.inferencer.check([ask.prompt], ask.settings)
        if len(ask.seeds) > self.batch_size:
            raise ValueError(f"{len(ask.seeds)} answers at once are more than this server gives, {self.batch_size}")
        with self._changed:
            if self._is_closing:
                raise Closing
            self.refuse_if_full()
            self._queue.append(ask)
            self._changed.notify()

    def cancel(self, ask: Ask) -> None:
        """Nobody wants an ask any more: it leaves the queue, or its generation ends at the next token."""
        ask.future.cancel()
        with self._changed:
            if ask in self._queue:
                self._queue.remove(ask)

    def drain(self) -> None:
        """Take no more asks and fail those that wait, with Closing; what runs is finished."""
        with self._changed:
            self._is_closing = True
            refused = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for ask in refused:
            ask.fail(Closing())

    def close(self) -> None:
        """Drain, and wait for what runs."""
        self.drain()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="answers") as pool:
            while batch := self._next():
                begun = time.monotonic()
                # whatever goes wrong in there, bugs too, is those asks' to hear, and the next ones are answered
                error = pool.submit(self._answer, batch).exception()
                if error is not None:
                    for ask in batch:
                        ask.fail(error)
                batch.clear()  # their images go with them, and not as late as another batch comes
                if self.inferencer.device.type == "cpu":
                    trim_heap()
                taken = time.monotonic() - begun
                self._seconds += (taken - self._seconds) * (SMOOTHING if self._seconds else 1)

    def _next(self) -> list[Ask]:
        """The next batch, as soon as there is one; empty at the end."""
        with self._changed:
            while not self._is_closing:
                self._changed.wait_for(lambda: self._queue or self._is_closing)
                while len(self._queue) < self.batch_size and not self._is_closing and self._changed.wait(self.wait):
                    pass
                if self._queue:  # whoever asked may have gone away while others were waited for
                    break
            batch: list[Ask] = []
            for ask in self._queue:
                if not batch or (ask.kind == batch[0].kind and self._fits([*batch, ask])):
                    batch.append(ask)
            self._queue = deque(ask for ask in self._queue if ask not in batch)
            return batch

    def _fits(self, batch: Sequence[Ask]) -> bool:
        settings = batch[0].settings
        if settings.do_sample and settings.num_beams > 1 and any(ask.is_seed_given for ask in batch):
            return False  # beams of a batch are drawn together, with the first ask's seed
        rows = sum(len(ask.seeds) for ask in batch)
        longest = max(len(ask.prompt.ids) for ask in batch) + max(ask.settings.max_new_tokens for ask in batch)
        return rows <= self.batch_size and rows * settings.num_beams * longest <= self.batch_tokens

    def _answer(self, batch: Sequence[Ask]) -> None:
        """Answer a batch; one that fails is answered in halves, until the ask that fails is alone."""
        batch = [ask for ask in batch if not ask.future.done()]
        if not batch:
            return
        try:
            self._generate(batch)
            return
        except (RuntimeError, ValueError, MemoryError) as error:
            logger.warning("a batch of %d failed: %s", len(batch), type(error).__name__, exc_info=len(batch) == 1)
            if len(batch) == 1:
                batch[0].fail(error)
            is_full = is_out_of_memory(error)
        # only here has the error gone, and with it what its traceback kept in memory
        if is_full:
            free_memory()
        half = (len(batch) + 1) // 2
        for part in (batch[:half], batch[half:]):
            if len(batch) > 1:
                self._answer(part)

    def _generate(self, batch: Sequence[Ask]) -> None:
        rows = [Row(ask, number) for ask in batch for number in range(len(ask.seeds))]
        if self.observe is not None:
            self.observe.batch(len(rows))
        most = max(ask.settings.max_new_tokens for ask in batch)
        settings = replace(batch[0].settings, max_new_tokens=most)
        listened = [i for i, row in enumerate(rows) if row.ask.listen is not None and settings.num_beams == 1]

        def finished(index: int, answer: Answer) -> None:
            ask, number = rows[index]
            if self.observe is not None:
                self.observe.answer(answer, is_wanted=not ask.future.cancelled())
            ask.finish(number, answer)

        self.inferencer.answer(
            [row.ask.prompt._replace(max_new_tokens=row.ask.settings.max_new_tokens) for row in rows],
            settings,
            list(chain.from_iterable(ask.seeds for ask in batch)),
            hear={i: rows[i].ask.hear(rows[i].number) for i in listened},
            wanted=lambda index: not rows[index].ask.future.cancelled(),
            finished=finished,
        )
