"""Image files to tensors: EXIF orientation, RGB, in training sometimes a square, then the tower's own transform."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from instruction_dataset.image_files import DAMAGE

SQUARE_PROBABILITY = 0.5


def open_image(path: Path) -> Image.Image:
    """An image in RGB, the right way up. Raises ValueError naming the file where it cannot be read."""
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ValueError(f"image {path} does not exist") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path} is not an image that Pillow can read") from error
    except DAMAGE as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; Pillow itself would clip 16-bit grey to white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 0xFFFF).astype(np.int32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def load_image(path: Path, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """An image as the tower takes it, (C, H, W)."""
    return transform(open_image(path))


def load_images(
    paths: Sequence[Path], transform: Callable[[Image.Image], Tensor], rng: random.Random | None
) -> list[Tensor]:
    """The images of one sample, each (C, H, W), augmented anew by `rng`; one that comes up several times is decoded once."""
    opened = {path: open_image(path) for path in dict.fromkeys(paths)}
    return [transform(opened[path] if rng is None else augment(opened[path], rng)) for path in paths]


def augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """The image, or half of the time the image in a square of a random colour."""
    if rng.random() >= SQUARE_PROBABILITY:
        return image
    return pad_to_square(image, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square of one colour."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=color) if image.width != image.height else image
