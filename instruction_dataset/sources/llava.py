"""LLaVA-Instruct-150K: detailed descriptions, complex reasoning and conversations about COCO images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._conversations import expand_for, turns, without_placeholder


def convert(source: Path, job: Job, *, file: str) -> Iterator[Record]:
    """One record per answer."""
    (dialogues,) = files_of(source, file)
    return job.each(rows(dialogues), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a dialogue about one COCO image."""
    image = image_tag(coco_path(job, row.text("image")))
    return expand_for(job, turns(row, clean=without_placeholder), image)


def coco_path(job: Job, name: str) -> str:
    """Where an image lies: in the folder of COCO 2014, or in that of 2017 where only that one holds it."""
    path = f"train2014/COCO_train2014_{name}"
    if job.image_root and not job.has_image(path) and job.has_image(f"train2017/{name}"):
        return f"train2017/{name}"
    return path


def _source(file: str, records: int) -> Source:
    return Source(
        convert=partial(convert, file=file),
        files=file,
        origin="Hugging Face liuhaotian/LLaVA-Instruct-150K",
        images="COCO train2014, or train2017",
        records=records,
        licence="CC BY-NC 4.0",
        as_2023=True,
    )


SOURCES = {
    "llava-complex-reasoning-77k": _source("complex_reasoning_77k.json", 76_643),
    "llava-conversation-58k": _source("conversation_58k.json", 256_870),
    "llava-detail-23k": _source("detail_23k.json", 23_240),
}
