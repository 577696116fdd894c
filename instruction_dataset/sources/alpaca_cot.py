"""Alpaca-CoT: collections of instructions in one format, without what is long, speaks of images, or refuses.

The records keep the order of the files: training draws them at random, and a shuffle would hold them all in memory.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record
from instruction_dataset.sources._keywords import holds_keyword

KINDS = (".json", ".jsonl")
LONGEST_INPUT = 511
"""Characters."""
LONGEST_OUTPUT = 1023
"""Characters."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per instruction of all files of a folder and of its folders, or of one file."""
    for file in find_files(source):
        yield from job.each(rows(file), partial(records, job=job))


def find_files(source: Path) -> list[Path]:
    """The JSON files under a folder, or the one file; ValueError where there is none."""
    files = [source] if source.is_file() else sorted(file for kind in KINDS for file in source.rglob(f"*{kind}"))
    if not files:
        raise ValueError(f"{source} holds no {' and no '.join(KINDS)} file; check --source")
    return files


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of an instruction, unless it is too long or holds a keyword."""
    instruction, output = row.text("instruction"), row.text("output")
    data = row.text("input") if "input" in row else ""
    text = f"{instruction}\ninput: {data}" if data.strip() else instruction
    if any(map(holds_keyword, (instruction, data, output))):
        job.leave_out("it speaks of images, apologizes, or names a model")
    elif len(text) > LONGEST_INPUT:
        job.leave_out("the instruction is too long")
    elif len(output) > LONGEST_OUTPUT:
        job.leave_out("the answer is too long")
    else:
        yield Record(refuse_tags(text), output)


SOURCES = {
    "alpaca-cot": Source(
        convert=convert,
        files="*.json of the collections wanted, in folders as they are",
        origin="Hugging Face QingyiSi/Alpaca-CoT",
        records=3_149_241,
        licence="each collection's own",
    ),
}
