"""TextCaps: photos with text in them, captions of which read it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows_at
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._captions import WITH_TEXT, as_caption


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per caption.

    The file has a row per caption, and each row lists all captions of its image: the first row of an image gives them.
    With `as_2023` every row does, so that a caption comes five times.
    """
    (captions,) = files_of(source, f"TextCaps_0.1_{job.split}.json")
    return job.each(rows_at(captions, "data"), partial(records, seen=set(), job=job))


def records(row: Row, seen: set[str], job: Job) -> Iterator[Record]:
    """The records of all captions of an image; none for an image that had its records before."""
    image, captions = row.text("image_id"), [as_caption(text) for text in row.texts("reference_strs")]
    prompt = image_tag(row.text("image_path"))
    if image in seen and not job.as_2023:
        job.leave_out("the row repeats an image, whose captions all came with its first row")
        return
    seen.add(image)
    prompt += job.rng.choice(WITH_TEXT)
    yield from (Record(prompt, caption) for caption in captions)


SOURCES = {
    "textcaps": Source(
        convert=convert,
        files="TextCaps_0.1_{split}.json",
        origin="https://textvqa.org/textcaps/dataset/",
        images="TextCaps (Open Images), as image_path says: train/ID.jpg",
        records=109_765,
        licence="CC BY 4.0",
        splits=("train", "val"),
        as_2023=True,
    )
}
