"""Memory that nobody uses any more, and that would be kept: free pages of the C heap, and garbage in cycles."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Give the free pages of the heap back to the system, which takes milliseconds; elsewhere than in glibc, nothing."""
    if _trim is not None:
        _trim(0)


@contextmanager
def settled() -> Iterator[None]:
    """While it lasts, collections of garbage pass over all that is there already.

    They are due when there is a quarter more to look at than last time. With a model and its libraries in memory, that
    takes thousands of requests, of which a stream that its client left holds its images in a cycle of the web framework's.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left to look at
    try:
        yield
    finally:
        gc.unfreeze()
