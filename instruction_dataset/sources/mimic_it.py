"""MIMIC-IT: instructions about one image or several; the images are exported by `instruction_dataset.export_images`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, members
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag

GIVEAWAY = "annotations"
"""An answer with this word speaks of what its writer, a language model, was given in place of the images."""
SPEAKERS = ("[male]", "[female]")
"""How an answer names people whose names were taken out of subtitles."""
SN_STORED = "SN_00_IMG"
"""What the stored names of SN's images begin with."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of MIMIC-IT, and what is its own."""

    folder: str
    file: str
    records: int
    most_images: int = 4
    renamed: bool = False
    """Its images are stored under other names than the instructions give."""
    checked: bool = False
    """Some of its images were never published: its records need theirs to be there."""


PARTS = {
    "mimic-it-laconv": Part(folder="LA", file="LACONV_instructions.json", records=256_870),
    "mimic-it-lacr-t2t": Part(folder="LA", file="LACR_T2T_instructions.json", records=76_643),
    "mimic-it-ladd": Part(folder="LA", file="LADD_instructions.json", records=23_240),
    "mimic-it-sn": Part(folder="SN", file="SN_instructions.json", records=6_640, renamed=True),
    "mimic-it-tvc": Part(folder="TVC", file="TVC_instructions.json", records=137_607, most_images=8),
    "mimic-it-vst": Part(folder="VST", file="VST_instructions.json", records=31_714, checked=True),
}


def convert(source: Path, job: Job, *, part: Part) -> Iterator[Record]:
    """One record per instruction, with so many of its images as there may be, drawn at random, in their order."""
    (file,) = files_of(source, f"{part.folder}/{part.file}", part.file)
    if part.checked:
        job.images()
    return job.each((row for _, row in members(file, "data")), partial(records, part=part, job=job))


def records(row: Row, part: Part, job: Job) -> Iterator[Record]:
    """The record of an instruction."""
    instruction, answer = refuse_tags(row.text("instruction")), row.text("answer")
    images = [f"{stored_name(name) if part.renamed else name}.png" for name in row.texts("image_ids")]
    images = _some(images, part.most_images, job)
    # in 2023 the word was looked for in the instruction
    if GIVEAWAY in (instruction if job.as_2023 else answer):
        job.leave_out(f"it speaks of {GIVEAWAY}")
    elif any(speaker in answer for speaker in SPEAKERS):
        job.leave_out(f"it speaks of {' or '.join(SPEAKERS)}")
    elif part.checked and not all(map(job.has_image, images)):
        job.leave_out("an image is not there")
    else:
        yield Record(instruction + "".join(map(image_tag, images)), answer)


def stored_name(name: str) -> str:
    """The id under which an image of SN is stored: `SN_IMG_x_color_1` as `SN_00_IMG_x_00_color_1`; such an id stays."""
    if name.startswith(SN_STORED):
        return name
    return name.replace("SN_IMG", SN_STORED).replace("_color", "_00_color")


def _some(images: list[str], most: int, job: Job) -> list[str]:
    if len(images) <= most:
        return images
    return [images[i] for i in sorted(job.rng.sample(range(len(images)), most))]


def _source(part: Part) -> Source:
    return Source(
        convert=partial(convert, part=part),
        files=f"{part.folder}/{part.file}",
        origin="Hugging Face pufanyi/MIMICIT",
        images=f"{part.folder}.json or {part.folder}.parquet, exported by python -m instruction_dataset.export_images",
        records=part.records,
        as_2023=True,
    )


SOURCES = {name: _source(part) for name, part in PARTS.items()}
