"""LAMM: dialogues, descriptions and vision tasks about images of COCO, Bamboo and others."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import expand
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._conversations import turns, without_placeholder

FOLDER = "2D_Instruct"
FILE = "LAMM_instruct_186k.json"


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer; ValueError where no folder of images was named."""
    job.images()
    (dialogues,) = files_of(source, f"{FOLDER}/meta_file/{FILE}", f"meta_file/{FILE}", FILE)
    return job.each(rows(dialogues), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a dialogue, without the answers that give boxes."""
    path = f"{FOLDER}/{row.text('image')}"
    if "bamboo" in path and not opens(job.images() / path):
        job.leave_out("the image is of Bamboo and does not open")
        return
    for record in expand(turns(row, clean=without_placeholder), image_tag(path)):
        if "[" in record.output or "]" in record.output:
            job.leave_out("the answer holds a bracket, as boxes do")
        else:
            yield record


def opens(path: Path) -> bool:
    """Whether Pillow reads the head of an image: links of Bamboo have gone, and left pages in place of pictures."""
    try:
        with Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError):
        return False


SOURCES = {
    "lamm": Source(
        convert=convert,
        files=f"{FOLDER}/meta_file/{FILE}",
        origin="Hugging Face openlamm/LAMM_Dataset",
        images=f"the folders of {FOLDER}; --image_root is the folder that holds {FOLDER}",
        records=472_009,
    )
}
