"""Images on their way to the API: small enough to send, as data URLs, and those that come with scikit-image."""

import base64
import hashlib
import io
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageOps

from instruction_dataset.image_files import DAMAGE

SIDE = 768
"""Pixels of the longest side of what is sent: twice what a vision tower looks at, and legible on the page."""
SMALL = 512 * 1024
"""Bytes up to which a file is sent as it is."""
MAX_PIXELS = 50_000_000
SENT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""The formats that are sent as they are."""
READ = (*SENT, "GIF", "BMP", "TIFF")
EXAMPLES = {
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "astronaut.png": "an astronaut",
    "rocket.jpg": "a rocket",
    "motorcycle_left.png": "a motorcycle",
    "coins.png": "old coins",
    "hubble_deep_field.jpg": "galaxies",
    "horse.png": "the shape of a horse",
}
"""Files inside the wheel of scikit-image, and what they show."""


def prepare(source: Path, folder: Path) -> Path:
    """A copy of an image in `folder`, named by its content, as small as it is sent.

    Raises ValueError for what is no image that can be read.
    """
    data, suffix = shrink(source)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
    path.write_bytes(data)
    return path


def shrink(source: Path) -> tuple[bytes, str]:
    """The bytes to send and their file suffix: those of a small file, else a JPEG whose longest side is `SIDE`."""
    try:
        with suppress(Image.DecompressionBombError), Image.open(source, formats=READ) as image:
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                is_small = max(image.size) <= SIDE and source.stat().st_size <= SMALL
                if is_small and image.format in SENT:
                    return source.read_bytes(), SENT[image.format]
                return to_jpeg(image), "jpg"
    except DAMAGE as error:
        raise ValueError(
            f"{source.name} is not an image that can be read; JPEG, PNG, WebP, GIF, BMP and TIFF are"
        ) from error
    raise ValueError(f"{source.name} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller")


def to_jpeg(image: Image.Image) -> bytes:
    """An image upright, on white where it is transparent, as a JPEG whose longest side is at most `SIDE`."""
    upright = ImageOps.exif_transpose(image)
    upright.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    held = io.BytesIO()
    upright.convert("RGB").save(held, "JPEG", quality=92)
    return held.getvalue()


def data_url(path: Path) -> str:
    """An image that was prepared, as a part of a request."""
    kind = {"jpg": "jpeg"}.get(path.suffix[1:], path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def examples(folder: Path) -> list[tuple[Path, str]]:
    """The example images, prepared, and what each shows."""
    inside = Path(str(files("skimage.data")))
    return [(prepare(inside / name, folder), about) for name, about in EXAMPLES.items()]
