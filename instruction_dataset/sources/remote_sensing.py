"""RSICD, RSITMD and UCM-captions: aerial images with five captions each; and RET-3, the three as one dataset.

RET-3 has one record per training image. RemoteCLIP, which first merged the three, also left out images that look like
test images of another one; that needs the pixels and is not repeated here, so there are somewhat more records.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source
from instruction_dataset.readers import files_of, karpathy
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._captions import AERIAL, as_caption

FILES = {"RSICD": "dataset_rsicd.json", "RSITMD": "dataset_RSITMD.json", "UCM": "dataset.json"}


def convert(source: Path, job: Job, *, dataset: str) -> Iterator[Record]:
    """One record per different caption; fewer than five were written for many images, and repeated."""
    return job.each(karpathy(_file(source, dataset)), partial(records, job=job))


def records(row: Row, job: Job) -> Iterator[Record]:
    """The records of an image of the split."""
    if _is_chosen(row, job):
        written = captions(row)
        for _ in range(len(written) - len(set(written))):
            job.leave_out("the image has the same caption twice")
        prompt = image_tag(row.text("filename")) + job.rng.choice(AERIAL)
        yield from (Record(prompt, caption) for caption in dict.fromkeys(written))


def convert_merged(source: Path, job: Job) -> Iterator[Record]:
    """One record per image, with the longest of its captions."""
    if source.is_file():
        raise ValueError(f"{source} is one file, but RET-3 is made of three; give their folder as --source")
    files = [(dataset, _file(source, dataset)) for dataset in FILES]
    return chain.from_iterable(
        job.each(karpathy(file), partial(merged_records, folder=dataset, job=job)) for dataset, file in files
    )


def merged_records(row: Row, folder: str, job: Job) -> Iterator[Record]:
    """The record of an image of the split, which lies in a folder of its dataset."""
    if _is_chosen(row, job):
        image = image_tag(f"{folder}/{row.text('filename')}")
        yield Record(image + job.rng.choice(AERIAL), max(captions(row), key=len, default=""))


def captions(row: Row) -> list[str]:
    """All captions of an image."""
    return [as_caption(text) for text in row.columns("sentences", "raw")[0]]


def _is_chosen(row: Row, job: Job) -> bool:
    chosen = row.text("split") == job.split
    if not chosen:
        job.leave_out(f"the image is not of split {job.split}")
    return chosen


def _file(source: Path, dataset: str) -> Path:
    """The captions of a dataset, in the folder given or one folder below."""
    file, *others = files_of(source, FILES[dataset], f"*/{FILES[dataset]}")
    if others:
        raise ValueError(f"{source} holds both {file} and {others[0]}; keep the one of {dataset}")
    return file


def _source(dataset: str, origin: str, splits: tuple[str, ...]) -> Source:
    return Source(
        convert=partial(convert, dataset=dataset),
        files=FILES[dataset],
        origin=origin,
        images=f"{dataset}; --image_root is the folder of its images",
        splits=splits,
    )


_RSICD_PAGE = "https://github.com/201528014227051/RSICD_optimal"
SOURCES = {
    "ret-3": Source(
        convert=convert_merged,
        files=f"{', '.join(FILES.values())} (of UCM-captions), together or each in a folder",
        origin="the pages of rsicd, rsitmd and ucm-captions",
        images=f"those of the three, in folders {', '.join(f'{dataset}/' for dataset in FILES)}",
        records=13_717,
        splits=("train",),
    ),
    "rsicd": _source("RSICD", _RSICD_PAGE, ("train", "val", "test")),
    "rsitmd": _source("RSITMD", "https://github.com/xiaoyuan1996/AMFMN, folder RSITMD", ("train", "test")),
    "ucm-captions": _source("UCM", _RSICD_PAGE, ("train", "val", "test")),
}
