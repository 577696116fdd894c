"""GRiD-3D: rendered scenes, and questions about the directions in which things lie and look."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._questions import THE_ANSWER, as_sentence

SPLITS = ("train", "val", "test")
SPOKEN = {
    "true": ("True.", "That is true.", "Yes, that is true.", "This is true."),
    "false": ("False.", "That is false.", "No, that is false.", "This is false."),
    "yes": ("Yes.", "The answer is yes.", "Yes, that is so."),
    "no": ("No.", "The answer is no.", "No, that is not so."),
}


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question of the split, whose file lists places in `questions.json`, from 0."""
    images = find_images(job.images())
    places = job.index(rows(source / f"{job.split}_idxs.json"), lambda row: (place(row), row.number))
    yield from job.each(picked(rows(source / "questions.json"), places), partial(records, images=images, job=job))
    for _ in places:
        job.leave_out("a place of the split has no question")


def picked(questions: Iterable[Row], places: dict[int, int]) -> Iterator[Row]:
    """The questions at some places, which are taken out."""
    for row in questions:
        if places.pop(row.number - 1, None) is not None:
            yield row


def find_images(root: Path) -> dict[int, str]:
    """The PNG files under a folder by the number that is their name.

    Raises ValueError where two have the same number.
    """
    images: dict[int, str] = {}
    for file in sorted(root.rglob("*.png")):
        if not file.stem.isdecimal():
            continue
        path = file.relative_to(root).as_posix()
        if int(file.stem) in images:
            raise ValueError(f"{root} has {images[int(file.stem)]} and {path}; name the folder of one of them")
        images[int(file.stem)] = path
    return images


def place(row: Row) -> int:
    """A row that is a whole number."""
    if not isinstance(row.value, int):
        raise ValueError(f"a place in questions.json must be a whole number, not {row.value!r}")
    return row.value


def records(row: Row, images: dict[int, str], job: Job) -> Iterator[Record]:
    """The record of a question, unless its image is not there."""
    path = images.get(row.number_of("img_idx"))
    question = " ".join(row.texts("question")).replace(" ?", "?").replace(" '", "'")
    answer = spoken(row.text("answer").strip(), job)
    if path is None:
        job.leave_out("the image is not there")
    else:
        yield Record(image_tag(path) + as_sentence(refuse_tags(question)), answer)


def spoken(answer: str, job: Job) -> str:
    """The answer as a sentence; empty where it is empty."""
    if not answer:
        return ""
    sentences = SPOKEN.get(answer.lower()) or THE_ANSWER
    return job.rng.choice(sentences).format(answer)


SOURCES = {
    "grid-3d": Source(
        convert=convert,
        files="questions.json, {split}_idxs.json",
        origin="https://github.com/knowledgetechnologyuhh/grid-3d",
        images="GRiD-3D, numbered PNG files in any folders",
        splits=SPLITS,
    ),
}
