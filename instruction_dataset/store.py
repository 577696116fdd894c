"""Records in memory-mapped Arrow: a source is read once, filed by its content, and opened at once ever after.

A store is a folder `records/KEY` of the cache, with `records.arrow` and `about.json`. It appears whole, by one rename, so
that a killed build leaves none; processes that want the same one wait for the first of them to build it.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock
from tqdm import tqdm

from instruction_dataset.formats import name_of, parse_row
from instruction_dataset.reading import NoRecordsError, read_rows, source_files
from instruction_dataset.records import Record, write_whole

VERSION = "1"
"""Of what stores hold: another version reads sources anew."""
BATCH = 4096
"""Records of one Arrow batch."""
CACHE_VARIABLE = "INSTRUCT_FLAMINGO_CACHE"
ABOUT = "about.json"
SCHEMA = pa.schema({"inputs": pa.list_(pa.string()), "outputs": pa.list_(pa.string())})


def default_cache() -> Path:
    """Where stores are kept: $INSTRUCT_FLAMINGO_CACHE, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get(CACHE_VARIABLE, f"{home}/instruct_flamingo"))


class RecordStore(Sequence[Record]):
    """The records of one source, on disk."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        """`files` are those it was read from, or others of the same content."""
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.folder, self.files = folder, files
        self.formats: dict[str, int] = about["formats"]
        """How many records came in each format."""
        self._ends = list(accumulate(about["counts"]))

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordStore, (self.folder, self.files)

    @property
    def key(self) -> str:
        """The digest of the source's content."""
        return self.folder.name

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        reader = pa.ipc.open_file(pa.memory_map(str(self.folder / "records.arrow")))
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        batch, row = divmod(index % len(self), BATCH)
        columns = self._batches[batch]
        return _record(columns["inputs"][row].as_py(), columns["outputs"][row].as_py())

    def __iter__(self) -> Iterator[Record]:
        for batch in self._batches:
            for inputs, outputs in zip(batch["inputs"].to_pylist(), batch["outputs"].to_pylist(), strict=True):
                yield _record(inputs, outputs)

    def where(self, index: int) -> str:
        """The file of a record and its number there, for messages."""
        file = bisect_right(self._ends, index)
        return f"{self.files[file]}, record {index + 1 - [0, *self._ends][file]}"


def open_records(path: Path, cache: Path | None = None, *, quiet: bool = True) -> RecordStore:
    """The records of a file or a folder of shards, built first if its content was never seen.

    Raises ValueError naming file and record where something cannot be read or is malformed.
    """
    files = source_files(path)
    home = (cache or default_cache()) / "records"
    folder = home / _content_key(files, home)
    build_once(folder, lambda partial: _build(files, partial, quiet))
    return RecordStore(folder, files)


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Have `build` fill a folder that becomes `folder`, unless it is there; one process does, the others wait for it."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        partial.mkdir()
        try:
            build(partial)
            for file in partial.iterdir():
                _sync(file)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _build(files: list[Path], folder: Path, quiet: bool) -> None:
    counts, formats = Counter[str](), Counter[str]()
    with (
        pa.OSFile(str(folder / "records.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        tqdm(desc=f"reading {files[0].name}", unit=" records", disable=quiet) as bar,
    ):
        rows = _rows(files, counts, formats)
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(_arrow(batch))
            bar.update(len(batch))
    if not counts.total():
        raise NoRecordsError(f"{files[0]} holds no records")
    about = {"counts": [counts[str(file)] for file in files], "formats": formats}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _rows(files: list[Path], counts: Counter[str], formats: Counter[str]) -> Iterator[Record]:
    """The records of all files; how many each holds, and of which formats, is counted on the way."""
    for file in files:
        for number, raw in enumerate(read_rows(file), start=1):
            try:
                record = parse_row(raw)
            except ValueError as error:
                raise ValueError(f"{file}, record {number}: {error}") from error
            counts[str(file)] += 1
            formats[name_of(raw)] += 1
            yield record


def _arrow(records: list[Record]) -> pa.RecordBatch:
    turns = [record.turns for record in records]
    columns = [[[turn[side] for turn in record] for record in turns] for side in (0, 1)]
    return pa.record_batch([pa.array(column, type=pa.list_(pa.string())) for column in columns], schema=SCHEMA)


def _record(inputs: list[str], outputs: list[str]) -> Record:
    (first, *further) = zip(inputs, outputs, strict=True)
    return Record(*first, further=tuple(further))


def _content_key(files: list[Path], home: Path) -> str:
    """A digest of what the files hold; that of each file is remembered for as long as its size and time stay."""
    digest = hashlib.sha256(VERSION.encode())
    for file in files:
        digest.update(_file_digest(file.resolve(), home / "digests").encode())
    return digest.hexdigest()[:32]


def _file_digest(file: Path, memory: Path) -> str:
    status = file.stat()
    known = f"{file}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ctime_ns}"
    note = memory / hashlib.sha256(known.encode()).hexdigest()[:32]
    if note.is_file():
        return note.read_text()
    with file.open("rb") as content:
        text = hashlib.file_digest(content, "sha256").hexdigest()
    write_whole(note, text)
    return text


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
