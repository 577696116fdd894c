"""GQA: questions about scenes, made from scene graphs of Visual Genome images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, members
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._questions import SHORT_ANSWER, as_sentence, beside

SPLITS = ("train", "val", "testdev")


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question, with its short answer."""
    file = source / f"{job.split}_balanced_questions.json"
    return job.each((row for _, row in members(file)), partial(records, job=job))


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of a question."""
    image = image_tag(f"images/{row.text('imageId')}.jpg")
    question, answer = refuse_tags(row.text("question")), row.text("answer")
    yield Record(image + beside(question, SHORT_ANSWER, job.rng), as_sentence(answer))


SOURCES = {
    "gqa": Source(
        convert=convert,
        files="{split}_balanced_questions.json",
        origin="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        images="GQA, in images/",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
}
