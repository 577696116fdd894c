"""The C heap, whose free pages glibc keeps: with batches of every size it would grow for hours, in holes of every size."""

import ctypes
import sys

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Give the free pages of the heap back to the system, which takes milliseconds; elsewhere than in glibc, nothing."""
    if _trim is not None:
        _trim(0)
