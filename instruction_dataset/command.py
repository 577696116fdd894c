"""What the commands of this package share: numbers of flags, and how they end, with a code and at most one sentence."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130


def ended(work: Callable[[], int], output: Path) -> int:
    """The exit code of a command's work: 1 for a user's error, 130 on Ctrl-C; `output` is where it writes."""
    try:
        with sigterm_unwinds():
            return work()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except OSError as error:
        place, reason = error.filename or output, error.strerror or error
        sys.stderr.write(f"error: {place} cannot be read or written: {reason}; correct that and start again\n")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
    return 1


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """While the context lasts, SIGTERM exits with 143 by way of all `finally`, which remove half a file and processes."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def at_least(least: int, text: str) -> int:
    """A whole number of a flag; `partial(at_least, 1)` is a type of argparse."""
    if not text.strip().removeprefix("-").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, not {text!r}")
    return int(text)
