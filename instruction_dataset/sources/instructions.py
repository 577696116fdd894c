"""Collections of single instructions and answers: OpenOrca, LaMini, LongForm, Dynosaur."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.reading import source_files
from instruction_dataset.records import Record


def convert(source: Path, job: Job, *, asked: tuple[str, ...], answered: str) -> Iterator[Record]:
    """One record per row of a file, or of all files of a folder; the fields of a question are joined with a space."""
    for file in source_files(source):
        yield from job.each(rows(file), partial(records, asked=asked, answered=answered))


def records(row: Row, asked: tuple[str, ...], answered: str) -> Iterator[Record]:
    """The record of an instruction; of the fields of its question, all but the first may be missing or empty."""
    first, *rest = asked
    parts = [row.text(first), *(row.text(field) for field in rest if field in row)]
    text = " ".join(part for part in parts if part.strip())
    yield Record(refuse_tags(text), row.text(answered))


SOURCES = {
    "openorca": Source(
        convert=partial(convert, asked=("question",), answered="response"),
        files="*.parquet",
        origin="Hugging Face Open-Orca/OpenOrca",
        licence="MIT",
    ),
    "lamini": Source(
        convert=partial(convert, asked=("instruction",), answered="response"),
        files="*.parquet",
        origin="Hugging Face MBZUAI/LaMini-instruction",
        licence="CC BY-NC 4.0",
    ),
    "longform": Source(
        convert=partial(convert, asked=("input",), answered="output"),
        files="*.parquet or *.json",
        origin="Hugging Face akoksal/LongForm",
    ),
    "dynosaur": Source(
        convert=partial(convert, asked=("instruction", "input"), answered="output"),
        files="*.json or *.jsonl",
        origin="Hugging Face Dynosaur/dynosaur-full",
    ),
}
