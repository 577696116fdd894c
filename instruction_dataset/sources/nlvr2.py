"""NLVR2: statements about two photographs, true or false."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._statements import ask

SPLITS = ("train", "dev", "test1", "test2")
LABELS = {"true": True, "false": False}
NAMES = (
    ("Left: ", "Right: "),
    ("Left image: ", "Right image: "),
    ("The left image: ", "The right image: "),
    ("On the left: ", "On the right: "),
    ("This is the left image: ", "This is the right image: "),
    ("Left picture ", "Right picture "),
)
SEPARATORS = (" ", "\n", ", ", "; ", ". ", " | ")
"""What stands between the two images."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per statement."""
    return job.each(rows(source / f"{job.split}.json"), partial(records, job=job))


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of a statement, which stands before the two images or after them."""
    left, right = map(image_tag, image_paths(row, job.split))
    question, answer = ask(refuse_tags(row.text("sentence")), label(row), job.rng)
    left_name, right_name = job.rng.choice(NAMES)
    separator = job.rng.choice(SEPARATORS)
    images = f"{left_name}{left}{separator}{right_name}{right}"
    yield Record(f"{question}\n{images}" if job.rng.random() < 0.5 else f"{images}\n{question}", answer)


def image_paths(row: Row, split: str) -> tuple[str, str]:
    """The left and the right image; the images of `train` lie in numbered folders."""
    parts = row.text("identifier").split("-")
    if len(parts) != 4:
        raise ValueError(f"field 'identifier' must be split-set-pair-sentence, not {row.text('identifier')!r}")
    folder = f"{split}/{row.number_of('directory')}" if split == "train" else split
    pair = f"{folder}/{'-'.join(parts[:3])}"
    return f"{pair}-img0.png", f"{pair}-img1.png"


def label(row: Row) -> bool:
    """Whether the statement holds, which the files write as text."""
    text = row.text("label")
    if text.lower() not in LABELS:
        raise ValueError(f"field 'label' must be True or False, not {text!r}")
    return LABELS[text.lower()]


SOURCES = {
    "nlvr2": Source(
        convert=convert,
        files="{split}.json",
        origin="https://github.com/lil-lab/nlvr, folder nlvr2/data",
        images="NLVR2, in train/0/ to train/99/, dev/, test1/, test2/",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
}
