"""Signals that ask a run to stop: it finishes its step, saves and ends; a second Ctrl-C ends it at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger("open_flamingo.train")

STOPPING = ("SIGTERM", "SIGUSR1", "SIGINT")
"""A scheduler's end of time, Slurm's warning before it (`--signal=USR1@120`), Ctrl-C."""


class Stop:
    """Whether this process was asked to stop, and by which signal."""

    received: signal.Signals | None = None

    @property
    def is_asked(self) -> bool:
        return self.received is not None

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler."""
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        logger.warning("%s: the run is saved after this step, and ends", self.received.name)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While the context lasts, signals that would end the process ask the yielded `Stop` instead."""
    stop = Stop()
    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
