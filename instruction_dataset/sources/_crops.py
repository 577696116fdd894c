"""Pieces of images as files of their own, next to the images they are cut from: one folder holds all a record names."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from instruction_dataset.converting import Job
from instruction_dataset.image_files import inside, read_image, save_image
from instruction_dataset.records import image_tag

QUALITY = 95
"""Of JPEG files."""

Box = Sequence[float]
"""Left, top, right, bottom, in pixels."""
Corners = tuple[float, float, float, float]
"""A box of no more than these."""


@dataclass(frozen=True)
class Crops:
    """The images that there are, and the folder that gets their pieces.

    What is there from an earlier run is left as it is, so a run that was stopped goes on fast.
    """

    root: Path
    folder: Path

    @classmethod
    def of(cls, job: Job) -> "Crops":
        """As the job's flags say; ValueError where one of them is missing."""
        return cls(job.images(), job.image_folder())

    def whole(self, path: str) -> str:
        """The tag of an image of `root`, which gets a link, or a copy, at the same path of `folder`."""
        target = inside(self.folder, path)
        if not target.exists():
            _link(self.root / path, target)
        return image_tag(path)

    def cut(self, path: str, boxes: Mapping[str, Box]) -> list[str]:
        """The tags of pieces of an image of `root`, by their paths in `folder`.

        Raises ValueError for an image that cannot be read, and for a box outside it.
        """
        missing = {name: box for name, box in boxes.items() if not inside(self.folder, name).exists()}
        if missing:
            image = read_image(self.root / path, self.root / path)
            for name, box in missing.items():
                save_image(image.crop(_pixels(box, image.size)), self.folder / name, quality=QUALITY)
        return [image_tag(name) for name in boxes]


def clamped(box: Box, size: tuple[int, int]) -> Corners:
    """The part of a box that its image of a width and height has; ValueError where that is no area."""
    width, height = size
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if left >= right or top >= bottom:
        raise ValueError(f"box {list(box)} holds no pixel of its image of {width} x {height}; correct it in the source")
    return left, top, right, bottom


def _link(original: Path, path: Path) -> None:
    """The same file at another path, which is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        try:
            os.link(original.resolve(), temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(original, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches, of those that the image has."""
    left, top, right, bottom = clamped(box, size)
    return floor(left), floor(top), ceil(right), ceil(bottom)
