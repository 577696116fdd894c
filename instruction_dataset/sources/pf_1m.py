"""PF-1M: a million answers of vision datasets, rewritten to be polite by Polite Flamingo; the best of them."""

import math
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record

FILE = "PF-1M.json"
KEPT = 800_000
CUT = "..."
"""What ends an answer that was cut short."""

Rate = Callable[[Row], float]


def convert(source: Path, job: Job, *, kept: int = KEPT) -> Iterator[Record]:
    """The records of the highest reward, in the order of the file, which is read twice.

    With `as_2023` the first ones of the file, whatever their reward. Answers that were cut short never count.
    """
    (file,) = files_of(source, FILE)
    rate: Rate = _alike if job.as_2023 else reward
    return job.each(rows(file), partial(records, rate=rate, chosen=best(file, rate, kept), job=job))


def records(row: Row, rate: Rate, chosen: set[int], job: Job) -> Iterator[Record]:
    """The record of a row, where it is one of the best."""
    text, answer = row.text("input"), refuse_tags(row.text("output"))
    rate(row)
    if answer.endswith(CUT):
        job.leave_out("the answer is cut short")
    elif row.number not in chosen:
        job.leave_out("the reward is not among the highest")
    else:
        yield Record(text, answer)


def best(file: Path, rate: Rate, kept: int) -> set[int]:
    """The numbers of so many rows of the highest reward; of equal ones, the first."""
    numbers, rewards = array("q"), array("d")
    for row in rows(file):
        try:
            cut, value = row.text("output").endswith(CUT), rate(row)
        except ValueError:
            continue  # it is reported, with its place, when its record is made
        if not cut:
            numbers.append(row.number)
            rewards.append(value)
    ranked = sorted(range(len(rewards)), key=rewards.__getitem__, reverse=True)
    return {numbers[i] for i in ranked[:kept]}


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
    )
}
