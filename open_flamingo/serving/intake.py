"""Images out of a request: in it, under folders that the server may read, or, where that is allowed, from the web.

What comes in is nobody's friend: sizes are looked at before anything is decoded, pixels before an image is, and what is
refused is refused in words that tell nothing of this machine.
"""

import asyncio
import binascii
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from instruction_dataset.image_files import DAMAGE
from open_flamingo.instruction_tuning.data.images import to_rgb
from open_flamingo.serving.fetch import TooLarge, Unfetchable, fetch

logger = logging.getLogger("open_flamingo.serving")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
BASE64_IMAGE = re.compile(r"data:image/[^,;]{1,64};base64,", re.IGNORECASE)
TILE_WIDTH = 322
"""The tag of a TIFF of tiles; one tile may be huge where the image is small, and libtiff makes room for all of it."""
SCAN = b"\xff\xda"
SCANS = 100
"""Of the largest JPEG, at most; progressive ones have about ten, but each of thousands is a walk over the whole image."""
DECODERS = ThreadPoolExecutor(2, thread_name_prefix="images")
"""As many whole images are in memory at once, whatever the number of requests."""

T = TypeVar("T")


class RequestError(Exception):
    """A request ends here: with a status, a sentence for the client, and what of the request is wrong."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


@dataclass(frozen=True)
class Limits:
    """What images a server takes."""

    images: int
    """Of one request."""
    image_bytes: int
    """Of an image as it comes: a file's, not those of its base64."""
    image_pixels: int
    folders: tuple[Path, ...] = ()
    """Whose files requests may name by their paths."""
    allow_urls: bool = False
    fetch_timeout: float = 10.0
    """Seconds."""


async def read_images(sources: Sequence[str], limits: Limits, look: Callable[[Image.Image], T]) -> list[T]:
    """What `look` makes of the images of a request; a whole image, in RGB and the right way up, lasts no longer than that.

    A source is a data URL, a path or a URL. `look` runs in a thread. Raises RequestError for what is no image, is too
    large, or is nowhere that this server reads from; images are named by their number, from 1.
    """
    if len(sources) > limits.images:
        message = f"a request may have {limits.images} images, and this one has {len(sources)}"
        raise RequestError(400, message, "too_many_images")
    return [await _read(source, number, limits, look) for number, source in enumerate(sources, start=1)]


async def _read(source: str, number: int, limits: Limits, look: Callable[[Image.Image], T]) -> T:
    scheme = found[1].lower() if (found := SCHEME.match(source)) else None
    file = await _fetch(source, number, limits) if scheme in ("http", "https") else None

    def decode_and_look() -> T:
        data = file if file is not None else _load(source, scheme, number, limits)
        return look(_decode(data, number, limits))

    return await asyncio.get_running_loop().run_in_executor(DECODERS, decode_and_look)


async def _fetch(url: str, number: int, limits: Limits) -> bytes:
    if not limits.allow_urls:
        raise _bad(f"image {number} is a URL, and this server fetches none: send it as a data URL", "url_not_allowed")
    try:
        return await fetch(url, limits.image_bytes, limits.fetch_timeout)
    except TooLarge as error:
        raise _too_many("bytes", limits.image_bytes, number) from error
    except Unfetchable as error:
        logger.info("an image could not be fetched: %s", error)
        raise _bad(f"image {number} could not be fetched: send it as a data URL", "image_not_found") from error


def _load(source: str, scheme: str | None, number: int, limits: Limits) -> bytes:
    """The file that is in a data URL or at a path."""
    if scheme == "data":
        return _from_data_url(source, number, limits)
    if scheme is None and limits.folders:
        return _from_folders(source, number, limits)
    raise _bad(f"image {number} must be a data URL, such as data:image/png;base64,...", "invalid_image_url")


def _from_data_url(url: str, number: int, limits: Limits) -> bytes:
    head = BASE64_IMAGE.match(url)
    if head is None:
        raise _bad(f"the data URL of image {number} must begin like data:image/png;base64,", "invalid_image_url")
    padding = url.count("=", len(url) - 2)
    if (len(url) - head.end()) // 4 * 3 - padding > limits.image_bytes:
        raise _too_many("bytes", limits.image_bytes, number)
    try:
        return binascii.a2b_base64(url[head.end() :], strict_mode=True)
    except ValueError as error:
        raise _bad(f"the data URL of image {number} is not base64", "invalid_base64") from error


def _from_folders(source: str, number: int, limits: Limits) -> bytes:
    """A file in an allowed folder both by its name and where its links lead; all others are refused alike."""
    try:
        path, named = Path(os.path.realpath(source, strict=True)), Path(source)
        folders = [(folder.absolute(), folder.resolve()) for folder in limits.folders]
        is_named = any(named.absolute().is_relative_to(folder) for both in folders for folder in both)
        # a way that goes up again would tell which folders there are outside
        if ".." in named.parts or not is_named or not any(path.is_relative_to(folder) for _, folder in folders):
            raise PermissionError
        data = _read_file(path, limits.image_bytes)
    except (OSError, ValueError) as error:
        message = f"image {number} is not a file in the folders that this server reads images from"
        raise _bad(message, "image_not_found") from error
    if len(data) > limits.image_bytes:
        raise _too_many("bytes", limits.image_bytes, number)
    return data


def _read_file(path: Path, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes` of a plain file; a pipe or a device, which might never end, is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError
        return file.read(max_bytes + 1)


def _decode(data: bytes, number: int, limits: Limits) -> Image.Image:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check(image, data, number, limits)
            return to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise _too_many("pixels", limits.image_pixels, number) from error
    except DAMAGE as error:
        message = f"image {number} is not an image that can be read, of {', '.join(FORMATS)}"
        raise _bad(message, "invalid_image") from error


def _check(image: Image.Image, data: bytes, number: int, limits: Limits) -> None:
    """Raise RequestError for an image that takes more to decode than its size lets expect."""
    pixels = image.width * image.height
    if pixels > limits.image_pixels:
        raise _too_many("pixels", limits.image_pixels, number)
    tiff = image if isinstance(image, TiffImageFile) and any(tile[0] == "libtiff" for tile in image.tile) else None
    if tiff and TILE_WIDTH in tiff.tag_v2:
        raise _bad(f"image {number} is a TIFF of compressed tiles, which this server does not read", "invalid_image")
    has_scans = tiff or image.format in ("JPEG", "MPO")
    if has_scans and data.count(SCAN) * pixels > SCANS * limits.image_pixels:
        raise _bad(f"image {number} is a JPEG of too many scans", "image_too_large")


def _too_many(unit: str, limit: int, number: int) -> RequestError:
    return _bad(f"image {number} has more than the {limit} {unit} that an image may have", "image_too_large")


def _bad(message: str, code: str) -> RequestError:
    return RequestError(400, message, code)
