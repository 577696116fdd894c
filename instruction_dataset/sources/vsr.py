"""VSR, Visual Spatial Reasoning: statements of where things are in a COCO image, true or false."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._statements import ask

SPLITS = ("train", "dev", "test")


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per statement."""
    return job.each(rows(source / f"{job.split}.jsonl"), partial(records, job=job))


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of a statement."""
    image = image_tag(f"images/{row.text('image')}")
    label = row.number_of("label")
    if label not in (0, 1):
        raise ValueError(f"field 'label' must be 0 or 1, not {label}")
    question, answer = ask(refuse_tags(row.text("caption")), bool(label), job.rng)
    yield Record(image + question, answer)


SOURCES = {
    "vsr": Source(
        convert=convert,
        files="{split}.jsonl, of the random or the zeroshot split",
        origin="https://github.com/cambridgeltl/visual-spatial-reasoning, folder data/splits",
        images="VSR, in images/",
        splits=SPLITS,
    ),
}
