"""Instruction data as it lies on disk: data files, or a config that names several, told apart by their content."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from instruction_dataset.reading import read_rows, source_files
from instruction_dataset.records import read_json_array
from instruction_dataset.store import RecordStore, open_records

CONFIG_KEYS = {"dataset_name", "json_path", "img_dir", "ratio"}


@dataclass(frozen=True)
class Dataset:
    """The records of one source."""

    name: str
    records: RecordStore
    img_dir: str = ""
    ratio: float = 1.0

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        return self.records.where(index)

    def image_path(self, path: str) -> Path:
        """A record's image path, made whole with the folder of the dataset's images."""
        return Path(self.img_dir, path)


def load_datasets(path: Path, cache: Path | None = None, *, quiet: bool = True) -> list[Dataset]:
    """The datasets of data files (one: a file or a folder of shards) or of a dataset config (each it names).

    Raises ValueError naming the file and the record where something is malformed or empty.
    """
    first = list(islice(read_rows(source_files(path)[0]), 1))
    if not first:
        raise ValueError(f"{path} holds no records")
    if isinstance(first[0], dict) and "json_path" in first[0]:
        return [
            Dataset(entry.name, open_records(entry.path, cache, quiet=quiet), entry.img_dir, entry.ratio)
            for entry in _entries(path)
        ]
    return [Dataset(path.name.partition(".")[0], open_records(path, cache, quiet=quiet))]


@dataclass(frozen=True)
class Entry:
    """What a dataset config says of one dataset."""

    name: str
    path: Path
    img_dir: str
    ratio: float


def parse_entry(row: object, taken: Collection[str]) -> Entry:
    """An entry of a dataset config; ValueError for what is wrong with it, and for a name that is `taken`."""
    if not isinstance(row, dict) or row.keys() != CONFIG_KEYS:
        keys = sorted(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"expected the keys {sorted(CONFIG_KEYS)}, found {keys}")
    for key in ("dataset_name", "json_path", "img_dir"):
        if not isinstance(row[key], str):
            raise ValueError(f"{key} must be a string, not {row[key]!r}")
    name, ratio = row["dataset_name"], row["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio >= 0:
        raise ValueError(f"ratio must be a number of at least 0, not {ratio!r}")
    if name in taken:
        raise ValueError(f"dataset_name {name!r} is used twice; results are filed by it, so rename one")
    return Entry(name, Path(row["json_path"]), row["img_dir"], float(ratio))


def _entries(config: Path) -> list[Entry]:
    entries: list[Entry] = []
    for number, row in enumerate(read_json_array(config), start=1):
        try:
            entries.append(parse_entry(row, {entry.name for entry in entries}))
        except ValueError as error:
            raise ValueError(f"{config}, dataset {number}: {error}") from error
    return entries
