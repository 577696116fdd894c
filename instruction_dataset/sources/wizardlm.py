"""WizardLM Evol-Instruct V2: instructions that were made harder step by step."""

from collections.abc import Iterator
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record
from instruction_dataset.sources._conversations import turns

FILE = "WizardLM_evol_instruct_V2_143k.json"


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per row."""
    (file,) = files_of(source, FILE)
    return job.each(rows(file), records)


def records(row: Row) -> Iterator[Record]:
    """The last question and its answer, without what was said before."""
    question, answer = turns(row)[-1]
    yield Record(question, answer)


SOURCES = {
    "wizardlm": Source(
        convert=convert,
        files=FILE,
        origin="Hugging Face WizardLM/WizardLM_evol_instruct_V2_196k",
        records=143_000,
        licence="MIT",
    )
}
