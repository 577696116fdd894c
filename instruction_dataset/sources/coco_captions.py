"""COCO 2017 captions: photos of everyday scenes, each with about five captions."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows_at
from instruction_dataset.readers import coco_2017, files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._captions import SHORT, as_caption


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per caption; those of an image have the same prompt."""
    file = f"captions_{job.split}2017.json"
    (captions,) = files_of(source, f"annotations/{file}", file)
    return job.each(rows_at(captions, "annotations"), partial(records, prompts={}, job=job))


def records(row: Row, prompts: dict[int, str], job: Job) -> Iterator[Record]:
    """The record of a caption, with the prompt that its image has, or gets now."""
    image, caption = row.number_of("image_id"), as_caption(row.text("caption"))
    if image not in prompts:
        prompts[image] = job.rng.choice(SHORT)
    yield Record(image_tag(coco_2017(job.split, image)) + prompts[image], caption)


SOURCES = {
    "coco-captions": Source(
        convert=convert,
        files="captions_{split}2017.json, itself or in annotations/",
        origin="https://cocodataset.org/#download",
        images="COCO train2017 or val2017",
        records=591_753,
        licence="CC BY 4.0",
        splits=("train", "val"),
    )
}
