"""What a converter is given and gives: rows of a source that name their place in errors, and a job that counts them."""

import os
import random
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ijson

from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.reading import read_rows
from instruction_dataset.records import Record, kind_of, refuse_half_characters, split_images

K = TypeVar("K")
V = TypeVar("V")

BAD_SHOWN = 5
TICK = 256
"""Rows from one sign of progress to the next."""


class Row(NamedTuple):
    """One object of a source file; a field that is missing or of another kind is a ValueError that names it."""

    value: Any
    file: Path
    number: int
    """From 1."""
    path: str = ""
    """Of this object in its record, such as `conversations[2].`."""
    fault: str = ""
    """What is wrong with a row that its file's format does not allow; it has no value."""

    @property
    def where(self) -> str:
        """The file and the number of the record."""
        return f"{self.file}, record {self.number}"

    def __contains__(self, key: object) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def text(self, key: str) -> str:
        """A field that is a string."""
        value = self.value.get(key) if type(self.value) is dict else None
        # most rows are sound, and this is called millions of times
        return value if type(value) is str else self._field(key, str, "a string")

    def number_of(self, key: str) -> int:
        """A field that is a whole number, or a string of digits, as identifiers are in some files."""
        value = self._field(key, int | float | str, "a whole number")
        is_whole = value.isdecimal() if isinstance(value, str) else value % 1 == 0  # pandas writes 7 as 7.0
        if isinstance(value, bool) or not is_whole:
            raise ValueError(f"field {self.path + key!r} must be a whole number, not {value!r}")
        return int(value)

    def real(self, key: str) -> float:
        """A field that is a number."""
        value = self._field(key, int | float, "a number")
        if isinstance(value, bool):
            raise ValueError(f"field {self.path + key!r} must be a number, not {kind_of(value)}")
        return float(value)

    def items(self, key: str) -> list[Any]:
        """A field that is an array."""
        return self._field(key, list, "an array")

    def texts(self, key: str) -> list[str]:
        """A field that is an array of strings."""
        for i, value in enumerate(self.items(key)):
            if not isinstance(value, str):
                raise ValueError(f"field '{self.path}{key}[{i}]' must be a string, not {kind_of(value)}")
        return self.items(key)

    def rows(self, key: str) -> list["Row"]:
        """A field that is an array of objects."""
        _, file, number, path, _ = self
        return [Row(value, file, number, f"{path}{key}[{i}].") for i, value in enumerate(self.items(key))]

    def columns(self, key: str, *names: str) -> list[list[str]]:
        """Fields of an array of objects that are strings in all of them: a list of each, in a third of the time of `rows`."""
        objects = self._field(key, list, "an array")
        try:
            columns = [[value[name] for value in objects] for name in names]
            for column in columns:
                "".join(column)  # takes nothing but strings, and tells sooner than a look at each
        except (KeyError, TypeError):
            return [[row.text(name) for row in self.rows(key)] for name in names]
        return columns

    def row(self, key: str) -> "Row":
        """A field that is an object."""
        return Row(self._field(key, dict, "an object"), self.file, self.number, f"{self.path}{key}.")

    def _field(self, key: str, kind: Any, called: str) -> Any:
        if not isinstance(self.value, dict):
            raise ValueError(f"{self.path.rstrip('.') or 'a record'} must be an object, not {kind_of(self.value)}")
        if key not in self.value:
            raise ValueError(f"field {self.path + key!r} is missing")
        value = self.value[key]
        if not isinstance(value, kind):
            raise ValueError(f"field {self.path + key!r} must be {called}, not {kind_of(value)}")
        return value


@dataclass(kw_only=True)
class Job:
    """What the user asked of a converter, and a count of what became of the rows."""

    split: str = ""
    seed: int = 0
    image_root: Path | None = None
    """Where the images that records name lie."""
    image_output: Path | None = None
    """Where a converter that makes images (crops, frames) writes them; records name them relative to it."""
    as_2023: bool = False
    """Give what the script of 2023 gave, with its faults."""
    skip_bad: bool = False
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """How many rows, or records of rows, are not written, by reason."""
    malformed: int = 0
    """How many rows were skipped because they are malformed."""
    bad: list[str] = field(default_factory=list)
    """The first of them, each with its place."""
    tick: Callable[[int], object] = lambda _read: None
    """Told now and then how many rows were read."""

    @cached_property
    def rng(self) -> random.Random:
        """The one source of chance of a converter."""
        return random.Random(self.seed)

    def each(self, rows: Iterable[Row], make: Callable[[Row], Iterable[Record]]) -> Iterator[Record]:
        """The records that `make` makes of rows, one after the other; all of a row's records, or none.

        Raises ValueError with file, record number and field where a row is malformed, unless bad rows are skipped.
        """
        for row in rows:
            self.read += 1
            if self.read % TICK == 0:
                self.tick(self.read)
            before = dict(self.left_out)
            try:
                records = [record for record in make(_sound(row)) if self._is_whole(record)]
            except ValueError as error:
                self.left_out = Counter(before)
                self._refuse(row, error)
                continue
            if not records and self.left_out == before:
                self.leave_out("the row holds nothing to make a record of")
            yield from records

    def index(self, rows: Iterable[Row], entry: Callable[[Row], tuple[K, V]]) -> dict[K, V]:
        """The side of a join that is held in memory: the keys and values that `entry` makes of rows.

        Raises ValueError with file and record number where a row is malformed or its key is there twice, unless bad
        rows are skipped.
        """
        table: dict[K, V] = {}
        for row in rows:
            try:
                key, value = entry(_sound(row))
                if key in table:
                    raise ValueError(f"{key!r} was there before; keep one record of it")
            except ValueError as error:
                self._refuse(row, error)
                continue
            table[key] = value
        return table

    def leave_out(self, reason: str) -> None:
        """Count a row, or one of its records, that is not written."""
        self.left_out[reason] += 1

    def images(self) -> Path:
        """Where the images lie; ValueError where no folder of images was named."""
        if self.image_root is None:
            raise ValueError("this source keeps only rows whose images are there; name their folder with --image_root")
        return self.image_root

    def has_image(self, path: str) -> bool:
        """Whether an image is there; ValueError where no folder of images was named."""
        return os.path.isfile(self.images() / path)  # noqa: PTH113 - False also for what cannot be a file's name

    def image_folder(self) -> Path:
        """Where made images go; ValueError where no folder was named."""
        if self.image_output is None:
            raise ValueError("this source makes images; name a folder for them with --image_output")
        return self.image_output

    def _refuse(self, row: Row, error: ValueError) -> None:
        if not self.skip_bad:
            raise ValueError(f"{row.where}: {error}") from error
        self.malformed += 1
        if len(self.bad) < BAD_SHOWN:
            self.bad.append(f"{row.where}: {error}")

    def _is_whole(self, record: Record) -> bool:
        """False for an empty answer, which is counted; ValueError for what no data file can hold."""
        text, answer = record.input, record.output
        if not answer or answer.isspace():
            self.leave_out("the answer is empty")
            return False
        split_images(text)
        refuse_tags(answer)
        if not (text.isascii() and answer.isascii()):
            refuse_half_characters(text + answer)
        return True


Convert = Callable[[Path, Job], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset that can be converted, and what its users have to know."""

    convert: Convert
    """From the folder (or file) given as --source."""
    files: str
    """What --source must hold."""
    origin: str
    """Where it is to be had: a page, or a name on a hub."""
    images: str = ""
    """Which images its records name; empty for text alone."""
    records: int | None = None
    """Records of the whole dataset, where known."""
    licence: str = "unknown"
    splits: tuple[str, ...] = ()
    """What --split may be; the first is the default."""
    as_2023: bool = False
    """It can also give what the script of 2023 gave, with its faults."""


def rows(file: Path) -> Iterator[Row]:
    """The rows of a JSON array, JSON Lines, Parquet, or gzip of these, streamed."""
    return (Row(value, file, number) for number, value in enumerate(read_rows(file), start=1))


def rows_at(file: Path, key: str) -> Iterator[Row]:
    """The rows of the array at `key` of a JSON object, streamed; dots lead into inner objects."""
    number = 0
    for number, value in enumerate(_streamed(file, ijson.items, f"{key}.item"), start=1):
        yield Row(value, file, number)
    if not number:
        raise ValueError(f"{file} has no array {key!r} with anything in it; is it the file that the source is made of?")


def members(file: Path, key: str = "") -> Iterator[tuple[str, Row]]:
    """The names and values of the JSON object at `key`, or of the file itself, streamed."""
    number = 0
    for number, (name, value) in enumerate(_streamed(file, ijson.kvitems, key), start=1):
        yield name, Row(value, file, number)
    if not number:
        place = f"object {key!r}" if key else "object"
        raise ValueError(f"{file} has no {place} with anything in it; is it the file that the source is made of?")


def _sound(row: Row) -> Row:
    """The row; ValueError where it is none."""
    if row.fault:
        raise ValueError(row.fault)
    return row


def _streamed(file: Path, read: Callable[..., Iterable[Any]], prefix: str) -> Iterator[Any]:
    try:
        with file.open("rb") as stream:
            if stream.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
                stream.read(len(BOM_UTF8))
            yield from read(stream, prefix, use_float=True)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; check --source") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a file that you may read") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    except ijson.JSONError as error:
        (problem,) = error.args
        words = problem.decode(errors="replace") if isinstance(problem, bytes) else str(problem)
        raise ValueError(f"{file} is not sound JSON ({' '.join(words.split())}); fetch it again") from error
