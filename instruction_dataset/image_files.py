"""Images read and written one by one: in RGB and the right way up, whole on disk or not at all, in their folder."""

import secrets
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps

DAMAGE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What decoders raise for files that are cut short or broken."""


def inside(folder: Path, path: str) -> Path:
    """The file at a path that a source gives; ValueError for one that leads out of the folder."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"path {path!r} leads out of its folder; correct it in the source")
    return folder / path


def read_image(source: Path | BinaryIO, name: object) -> Image.Image:
    """An image in RGB, the right way up, without the metadata of its file; ValueError with its name where it is broken."""
    try:
        with Image.open(source) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"image {name} does not exist; put it there") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"image {name} is no image that Pillow can read; fetch it again") from error
    except DAMAGE as error:
        raise ValueError(f"image {name} cannot be decoded ({error}); fetch it again") from error
    upright.info.clear()
    return upright


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """An image at `path`, in the format of its ending, replaced whole or not at all; options are those of Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        image.save(temporary, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
