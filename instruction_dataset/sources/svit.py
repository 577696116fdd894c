"""SVIT: conversations, reasoning and descriptions about Visual Genome images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import expand
from instruction_dataset.readers import files_of, visual_genome
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._conversations import Side, turns
from instruction_dataset.sources._visual_genome import IMAGE_DATA, path_of

SIDES: dict[str, Side] = {"user": "human", "gpt": "assistant"}


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer; ValueError for an image that Visual Genome does not list."""
    (file,) = files_of(source, "svit.json")
    paths = visual_genome(file.parent / IMAGE_DATA, job)
    return job.each(rows(file), partial(records, job, paths))


def records(job: Job, paths: dict[int, str], row: Row) -> Iterator[Record]:
    """The records of all conversations about an image, each of which begins anew."""
    image = image_tag(path_of(row, paths))
    for conversation in row.rows("conversations"):
        dialogue = turns(conversation, "content", SIDES)
        if len(dialogue) == 1 and job.rng.random() < 0.5:
            question, answer = dialogue[0]
            yield Record(f"{question}{image}", answer)
        else:
            yield from expand(dialogue, image)


SOURCES = {
    "svit": Source(
        convert=convert,
        files=f"svit.json (or the file of one task) and {IMAGE_DATA} of Visual Genome",
        origin="Hugging Face BAAI/SVIT",
        images="Visual Genome, VG_100K and VG_100K_2",
        licence="CC BY 4.0",
    )
}
