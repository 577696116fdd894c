"""PF-1M: a million answers of vision datasets, rewritten to be polite by Polite Flamingo; the best of them."""

import math
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record

FILE = "PF-1M.json"
KEPT = 800_000
CUT = "..."
"""What ends an answer that was cut short."""

Rate = Callable[[Row], float]


def convert(source: Path, job: Job, *, kept: int = KEPT) -> Iterator[Record]:
    """The records of the highest reward, in the order of the file, which is read twice.

    With `as_2023` the first ones of the file, whatever their reward. What is never written takes no place among them.
    """
    (file,) = files_of(source, FILE)
    rate: Rate = _alike if job.as_2023 else reward
    return job.each(rows(file), partial(records, rate=rate, beaten=beaten_rows(file, rate, kept), job=job))


def records(row: Row, rate: Rate, beaten: set[int], job: Job) -> Iterator[Record]:
    """The record of a row, unless its answer is cut short or the row is one of those beaten."""
    text, answer = row.text("input"), row.text("output")
    rate(row)
    if answer.endswith(CUT):
        job.leave_out("the answer is cut short")
    elif row.number in beaten:
        job.leave_out("the reward is not among the highest")
    else:
        yield Record(text, answer)


def beaten_rows(file: Path, rate: Rate, kept: int) -> set[int]:
    """The numbers of the rows that so many others surpass in reward; of equal ones, the last."""
    numbers, rewards = array("q"), array("d")
    # what is malformed is reported, with its place, when the records are made in earnest
    trial = Job(skip_bad=True)
    make = partial(records, rate=rate, beaten=set(), job=trial)
    for row in rows(file):
        for _ in trial.each([row], make):
            numbers.append(row.number)
            rewards.append(rate(row))
    ranked = sorted(range(len(rewards)), key=rewards.__getitem__, reverse=True)
    return {numbers[i] for i in ranked[kept:]}


def reward(row: Row) -> float:
    """What a model of human preference gave the answer."""
    value = row.real("reward")
    if not math.isfinite(value):
        raise ValueError(f"field 'reward' must be a finite number, not {value}")
    return value


def _alike(_: Row) -> float:
    return 0.0


SOURCES = {
    "pf-1m": Source(
        convert=convert,
        files=FILE,
        origin="Hugging Face chendelong/PF-1M",
        images="those of the datasets it rewrites, such as mscoco_2017/train2017/ID.jpg",
        records=KEPT,
        as_2023=True,
    )
}
