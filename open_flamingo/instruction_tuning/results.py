"""The results of a run under way: a file of JSON Lines per rank, a line per batch, from which a killed run goes on."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from instruction_dataset.records import write_json
from open_flamingo.instruction_tuning.answering import Item, Row

logger = logging.getLogger("open_flamingo.inference")

ABOUT = "about.json"
"""What the answers of a folder of parts were made from."""


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """No other run writes into a folder while this lasts; ValueError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another run writes into {folder}: wait until it has ended, or name another --results_dir"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink()
        lock.release()


def stamp(path: Path) -> list[tuple[str, int, int]]:
    """The path, size and time of change of a file, or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file.absolute()), (about := file.stat()).st_size, about.st_mtime_ns) for file in files]


def start_parts(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder of parts, emptied of answers that were made from anything but what `about` says, by its name."""
    file, wanted = folder / ABOUT, json.loads(json.dumps(about, default=str))
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if found == wanted:
        return
    if found:
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        logger.info("starting anew: what is answered so far was answered with other %s", ", ".join(changed))
    shutil.rmtree(folder, ignore_errors=True)
    write_json(file, wanted)


def read_parts(folder: Path) -> dict[Item, Row]:
    """The rows of all batches that are answered, whichever rank did it."""
    rows: dict[Item, Row] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for _, items, answered in _lines(path):
            rows.update(zip(items, answered, strict=True))
    return rows


class Part:
    """The file that one rank adds its batches to."""

    def __init__(self, folder: Path, rank: int) -> None:
        """A batch that an earlier run was killed in writing is cut off."""
        self.path = folder / f"{rank}.jsonl"
        self.file = self.path.open("ab")
        self.file.truncate(max((end for end, _, _ in _lines(self.path)), default=0))

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a batch that `add` could not write, which has told of it; all others are written
            self.file.close()

    def add(self, items: Sequence[Item], rows: Sequence[Row]) -> None:
        """Write a batch so that it outlives a kill; ValueError where the disk is full."""
        line = json.dumps({"records": items, "rows": rows}, ensure_ascii=False)
        try:
            self.file.write(f"{line}\n".encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise ValueError(
                f"answers could not be written to {self.path} ({error.strerror}): those before are kept, and the same"
                " command goes on from there"
            ) from error


def _lines(path: Path) -> Iterator[tuple[int, list[Item], list[Row]]]:
    """The batches of a part up to where it is torn, each with the place in the file where it ends."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                batch = json.loads(line)
            except ValueError:
                return
            end += len(line)
            yield end, [Item(*item) for item in batch["records"]], batch["rows"]
