"""LEVIR-CC: pairs of aerial images, before and after, and what changed; as two images, or joined into one."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from instruction_dataset.converting import Job, Row, Source
from instruction_dataset.image_files import read_image, save_image
from instruction_dataset.readers import files_of, karpathy
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._captions import CHANGE, as_caption

FILE = "LevirCCcaptions.json"
BESIDE, BELOW = "beside", "below"
LAYOUTS = {
    BESIDE: "The left half of the image shows the place before, the right half after.",
    BELOW: "The upper half of the image shows the place before, the lower half after.",
}
"""Where the image after stands."""

Show = Callable[[str, str], str | None]
"""From the paths of the images before and after to what stands before the prompt; None where an image is not there."""


def convert_pairs(source: Path, job: Job) -> Iterator[Record]:
    """One record per pair, with the longest caption: two labelled images, in random order."""
    return _convert(source, job, partial(_labelled, job=job))


def convert_joined(source: Path, job: Job) -> Iterator[Record]:
    """One record per pair, with the longest caption: one image, made of the two, side by side or one above the other."""
    return _convert(source, job, partial(_joined, root=job.images(), folder=job.image_folder(), job=job))


def _convert(source: Path, job: Job, show: Show) -> Iterator[Record]:
    (file,) = files_of(source, FILE)
    return job.each(karpathy(file), partial(records, show=show, job=job))


def records(row: Row, show: Show, job: Job) -> Iterator[Record]:
    """The record of a pair of the split."""
    if row.text("split") != job.split:
        job.leave_out(f"the images are not of split {job.split}")
        return
    before, after = (f"images/{job.split}/{side}/{row.text('filename')}" for side in "AB")
    answer = max((as_caption(text) for text in row.columns("sentences", "raw")[0]), key=len, default="")
    shown = show(before, after) if answer else ""  # no image is made for a record that is not written
    if shown is None:
        job.leave_out("an image is not there")
    else:
        yield Record(f"{shown}\n{job.rng.choice(CHANGE)}", answer)


def _labelled(before: str, after: str, job: Job) -> str:
    views = [f"Before: {image_tag(before)}", f"After: {image_tag(after)}"]
    job.rng.shuffle(views)
    return "\n".join(views)


def _joined(before: str, after: str, root: Path, folder: Path, job: Job) -> str | None:
    if not (job.has_image(before) and job.has_image(after)):
        return None
    layout = job.rng.choice(list(LAYOUTS))
    name = PurePosixPath(after)
    made = f"levir_cc/{job.split}/{name.stem}_{layout}.png"
    if not (folder / made).exists():  # an earlier run may have made it
        first, second = (read_image(root / path, root / path) for path in (before, after))
        save_image(join(first, second, layout), folder / made)
    return f"{image_tag(made)}{LAYOUTS[layout]}"


def join(first: Image.Image, second: Image.Image, layout: str) -> Image.Image:
    """Two images as one, the second beside the first or below it."""
    corner = (first.width, 0) if layout == BESIDE else (0, first.height)
    size = (max(first.width, corner[0] + second.width), max(first.height, corner[1] + second.height))
    both = Image.new("RGB", size)
    both.paste(first, (0, 0))
    both.paste(second, corner)
    return both


def _source(convert: Callable[[Path, Job], Iterator[Record]], images: str) -> Source:
    return Source(
        convert=convert,
        files=FILE,
        origin="https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset",
        images=images,
        records=6_815,
        splits=("train", "val", "test"),
    )


SOURCES = {
    "levir-cc": _source(convert_pairs, "LEVIR-CC, in images/"),
    "levir-cc-concatenated": _source(convert_joined, "made of LEVIR-CC, which lies in images/ of --image_root"),
}
