"""ToolBench: language models that call web services step by step, as ToolLLaMA was trained."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import expand
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record
from instruction_dataset.sources._conversations import Side, joined_turns

FILE = "toolllama_G123_dfs_train.json"
SIDES: dict[str, Side] = {"system": "nobody", "user": "human", "function": "human", "assistant": "assistant"}
"""The system's text, which describes the services at length, is left away; what they return stands as a question."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per step of the assistant, with the steps before it."""
    (file,) = files_of(source, FILE)
    return job.each(rows(file), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of one task."""
    return expand(joined_turns(row, job, SIDES, without_cue))


def without_cue(_side: Side, text: str) -> str:
    """A message without the `Begin!` that ends a task."""
    return text.strip().removesuffix("Begin!").rstrip()


SOURCES = {
    "toolbench": Source(
        convert=convert,
        files=FILE,
        origin="https://github.com/OpenBMB/ToolBench",
        records=80_210,
        licence="Apache-2.0",
    )
}
