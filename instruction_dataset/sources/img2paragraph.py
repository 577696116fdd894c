"""Stanford image paragraphs: Visual Genome images, each described in a paragraph."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.readers import files_of, url_tail
from instruction_dataset.records import Record, image_tag, kind_of
from instruction_dataset.sources._captions import DETAILED, as_paragraph

FILE = "paragraphs_v1.json"


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per paragraph of the split."""
    (paragraphs,) = files_of(source, FILE)
    chosen = _images(paragraphs.with_name(f"{job.split}_split.json"))
    return job.each(rows(paragraphs), partial(records, chosen=chosen, job=job))


def records(row: Row, chosen: set[int], job: Job) -> Iterator[Record]:
    """The record of an image, none for one of another split."""
    if row.number_of("image_id") not in chosen:
        job.leave_out(f"the image is not of split {job.split}")
        return
    image = image_tag(url_tail(row.text("url")))
    yield Record(f"{job.rng.choice(DETAILED)} {image}", as_paragraph(row.text("paragraph")))


def _images(split: Path) -> set[int]:
    """The ids of a split, which is an array of numbers."""
    chosen = set()
    for row in rows(split):
        if isinstance(row.value, bool) or not isinstance(row.value, int):
            raise ValueError(f"{row.where}: an image id must be a whole number, not {kind_of(row.value)}")
        chosen.add(row.value)
    return chosen


SOURCES = {
    "img2paragraph": Source(
        convert=convert,
        files=f"{FILE} and {{split}}_split.json",
        origin="https://cs.stanford.edu/people/ranjaykrishna/im2p/index.html",
        images="Visual Genome, in VG_100K/ and VG_100K_2/",
        records=14_579,
        splits=("train", "val", "test"),
    )
}
