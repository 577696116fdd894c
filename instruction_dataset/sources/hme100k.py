"""HME100K: photographs of handwritten formulas, and their LaTeX."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._questions import LATEX

SPLITS = ("train", "test")
COMMAND = re.compile(r"\\[A-Za-z]+")


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per formula."""
    return job.each(labels(source / f"{job.split}_labels.txt"), partial(records, job=job))


def labels(file: Path) -> Iterator[Row]:
    """The lines of a text file that are not blank; ValueError where it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Row(line.rstrip("\n"), file, number)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; check --source") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a file that you may read") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error


def records(row: Row, job: Job) -> Iterator[Record]:
    """The record of a line: file name, tab, and the symbols of the formula between spaces."""
    name, tab, formula = row.value.partition("\t")
    if not tab:
        raise ValueError("a line must be a file name, a tab and a formula")
    image = image_tag(f"{job.split}_images/{name}")
    latex = joined(formula.split())
    yield Record(image + job.rng.choice(LATEX), f"$${latex}$$" if latex else "")


def joined(symbols: list[str]) -> str:
    r"""A formula without spaces, but for the one that keeps a command from the letter after it: `\angle A`."""
    return "".join(
        f" {symbol}" if COMMAND.fullmatch(before) and symbol[0].isalpha() else symbol
        for before, symbol in pairwise(["", *symbols])
    )


SOURCES = {
    "hme100k": Source(
        convert=convert,
        files="{split}_labels.txt",
        origin="https://ai.100tal.com/dataset",
        images="HME100K, in train_images/, test_images/",
        splits=SPLITS,
    ),
}
