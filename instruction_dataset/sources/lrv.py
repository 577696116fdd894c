"""LRV-Instruction: questions about Visual Genome images, some about what is not in them."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows, rows_at
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import files_of, visual_genome
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._visual_genome import IMAGE_DATA, path_of

PATTERNS = ("filter_cap*1.json", "filter_cap*.json", "LRV*.json")
"""The files without coordinates, those with them, and both parts in one."""
SHORTEST_ANSWER = 16
HEAD = 4096


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question; ValueError for an image that Visual Genome does not list."""
    files = files_of(source, *PATTERNS)
    paths = visual_genome(files[0].parent / IMAGE_DATA, job)
    return job.each(chain.from_iterable(map(_rows, files)), partial(records, job, paths))


def records(job: Job, paths: dict[int, str], row: Row) -> Iterator[Record]:
    """The record of a question, none where the answer is no sentence, or lists things."""
    question, answer = row.text("question"), row.text("answer")
    if reason := _fault(question, answer):
        job.leave_out(reason)
        return
    yield Record(f"{image_tag(path_of(row, paths))}{refuse_tags(question)}", answer)


def _fault(question: str, answer: str) -> str:
    if ":" in question or ":" in answer:
        return "the question or the answer holds a colon"
    if len(answer) < SHORTEST_ANSWER:
        return f"the answer is shorter than {SHORTEST_ANSWER} characters"
    return "" if answer.endswith(".") else "the answer does not end in a full stop"


def _rows(file: Path) -> Iterator[Row]:
    """The rows of an array, or of that at `annotations`, where the first release has it."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        is_wrapped = stream.read(HEAD).lstrip().startswith("{")
    return rows_at(file, "annotations") if is_wrapped else rows(file)


SOURCES = {
    "lrv": Source(
        convert=convert,
        files=f"filter_cap1.json and filter_cap_more1.json, or one of them; {IMAGE_DATA} of Visual Genome",
        origin="https://github.com/FuxiaoLiu/LRV-Instruction",
        images="Visual Genome, VG_100K and VG_100K_2",
        records=98_670,
    )
}
