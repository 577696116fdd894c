"""UltraChat: dialogues between two language models."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import expand, refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record
from instruction_dataset.sources._keywords import holds_keyword

SHORTEST, LONGEST = 2, 1536
"""Characters of an input."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer, with the dialogue before it."""
    files = files_of(source, "ultrachat_*.json*", "train_*.jsonl")
    return job.each(chain.from_iterable(map(rows, files)), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a dialogue, without those that are too long or speak of images or of the speaker."""
    texts = [refuse_tags(text) for text in row.texts("data")]
    if len(texts) < 2:
        job.leave_out("the dialogue holds no question with an answer")
    for record in expand(list(zip(texts[::2], texts[1::2]))):
        if not SHORTEST <= len(record.input) <= LONGEST:
            job.leave_out(f"the input is not of {SHORTEST} to {LONGEST} characters")
        elif holds_keyword(record.input) or holds_keyword(record.output):
            job.leave_out("the text holds a keyword")
        else:
            yield record


SOURCES = {
    "ultrachat": Source(
        convert=convert,
        files="ultrachat_*_release_*.json, or train_*.jsonl",
        origin="https://github.com/thunlp/UltraChat, or Hugging Face stingning/ultrachat",
        records=157_457,
        licence="MIT",
    )
}
