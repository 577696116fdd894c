"""Image files looked at as training does, all of each decoded, by many processes; and small ones for a page."""

import multiprocessing
import signal
import warnings
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from instruction_dataset.findings import Kind
from instruction_dataset.scan import ImageUse

LONGEST_SIDE = 10_000
PIXELS = Image.MAX_IMAGE_PIXELS or 0
"""Over it Pillow warns of a decompression bomb; over twice as many it refuses."""
THUMBNAIL = 320
CHUNK = 16
"""Images that a process takes at once."""

Opener = Callable[[Path], Image.Image]
Verdict = tuple[Kind, str] | None


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Workers, all of them started at once, and killed at the end, so that Ctrl-C need not wait for an image."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, initializer=_be_quiet)
    pool.submit(_be_quiet).result()
    try:
        yield pool
    finally:
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        pool.shutdown(cancel_futures=True)


def look_at_all(
    pool: ProcessPoolExecutor, uses: Iterable[ImageUse], open_image: Opener, window: int
) -> Iterator[tuple[ImageUse, Verdict]]:
    """What is wrong with each image, in their order; at most `window` chunks of them are under way.

    Raises ValueError where a process was killed, by a system short of memory.
    """
    waiting: deque[Future[list[tuple[ImageUse, Verdict]]]] = deque()
    images = iter(uses)
    try:
        while chunk := list(islice(images, CHUNK)):
            waiting.append(pool.submit(_look, chunk, open_image))
            if len(waiting) >= window:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError("a process that decodes images was killed, perhaps out of memory; lower --workers") from error


def verdict(path: Path, open_image: Opener) -> Verdict:
    """What is wrong with an image file, None for one that training opens without a word."""
    try:
        width, height = open_image(path).size
    except ValueError as error:
        reason = error.__cause__ or error
        if isinstance(reason, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return Kind.MISSING, f"image {path} does not exist; put it there, or correct its path or img_dir"
        if isinstance(reason, Image.DecompressionBombError):
            return Kind.TOO_HUGE, f"image {path} has more pixels than Pillow opens, {2 * PIXELS:,}; make it smaller"
        if isinstance(reason, Image.UnidentifiedImageError):
            return Kind.UNREADABLE, f"image {path} cannot be opened (it is no image that Pillow can read); replace it"
        why = str(reason) or type(reason).__name__
        if isinstance(reason, OSError) and reason.errno:  # the system's, not a decoder's
            return Kind.UNREADABLE, f"image {path} cannot be opened ({why}); replace it"
        return Kind.DAMAGED, f"image {path} cannot be decoded ({why}); fetch it again"
    if max(width, height) > LONGEST_SIDE or width * height > PIXELS:
        return Kind.HUGE, f"image {path} is {width:,} x {height:,} pixels, slow to decode; make it smaller"
    return None


def thumbnail(path: Path, open_image: Opener) -> str | None:
    """A small copy of an image as a data URI; None where it is not sound."""
    try:
        image = open_image(path)
    except ValueError:
        return None  # the verdict tells why
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    image.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(data.getvalue()).decode()}"


def _look(uses: list[ImageUse], open_image: Opener) -> list[tuple[ImageUse, Verdict]]:
    return [(use, verdict(Path(use.path), open_image)) for use in uses]


def _be_quiet() -> None:
    """Leave Ctrl-C to the main process, end with SIGTERM at once, and say nothing of odd files beyond the verdict."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
