"""LLaVAR: dialogues about images with much text in them, published in one file with those of LLaVA."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._conversations import expand_for, turns, without_placeholder

FILE = "llava_instruct_150k_llavar_20k.json"


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer, of the dialogues whose image is there; ValueError where no folder of images was named."""
    job.images()
    (dialogues,) = files_of(source, FILE)
    return job.each(rows(dialogues), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a dialogue, none for one of LLaVA's, whose image is not in LLaVAR's folder."""
    image = row.text("image")
    if not job.has_image(image):
        job.leave_out("the image is not there, as those of LLaVA's dialogues")
        return iter(())
    return expand_for(job, turns(row, clean=without_placeholder), image_tag(image))


SOURCES = {
    "llavar-20k": Source(
        convert=convert,
        files=FILE,
        origin="Hugging Face SALT-NLP/LLaVAR",
        images="finetune.zip of the same page; --image_root is the folder it unpacks to",
        records=43_186,
        licence="CC BY-NC 4.0",
        as_2023=True,
    )
}
