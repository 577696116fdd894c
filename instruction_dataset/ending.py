"""How the commands of this package end: with an exit code, and where something is wrong with one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path

INTERRUPTED = 130


def ended(work: Callable[[], int], output: Path) -> int:
    """The exit code of a command's work: 1 for a user's error, 130 on Ctrl-C; `output` is where it writes."""
    try:
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
