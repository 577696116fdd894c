"""ArtEmis: paintings, the feeling that someone had before each, and why."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source
from instruction_dataset.readers import csv_rows, files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._captions import FEELING, as_caption

FILE = "artemis_dataset_release_v0.csv"
COMBINED = "combined/train/*.csv"
UNNAMED = "something else"
"""The emotion of those who chose none of the eight that have a name."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per annotation."""
    files = files_of(source, FILE, COMBINED)
    return job.each(chain.from_iterable(map(csv_rows, files)), partial(records, job=job))


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of an annotation: the emotion, and why."""
    image = image_tag(f"wikiart/{row.text('art_style')}/{row.text('painting')}.jpg")
    # words of titles are joined by underscores
    emotion, reason = (as_caption(row.text(key).replace("_", " ")) for key in ("emotion", "utterance"))
    feeling = (
        "" if emotion == as_caption(UNNAMED) or not reason else f"A feeling of {emotion[:1].lower()}{emotion[1:]} "
    )
    yield Record(image + job.rng.choice(FEELING), feeling + reason)


SOURCES = {
    "artemis": Source(
        convert=convert,
        files=f"{FILE} (version 1), or {COMBINED} (version 2)",
        origin="https://www.artemisdataset.org",
        images="WikiArt, as wikiart/STYLE/PAINTING.jpg",
        records=451_440,
    )
}
