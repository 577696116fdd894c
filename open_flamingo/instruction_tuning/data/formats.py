"""Instruction data as it lies on disk: data files, or a config that names several, told apart by their content."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from instruction_dataset.dataset_config import Source, is_entry, parse_entry, unconfigured
from instruction_dataset.reading import NoRecordsError, read_rows, source_files
from instruction_dataset.records import read_json_array
from instruction_dataset.store import RecordStore, open_records


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
    return [open_dataset(source, cache, quiet=quiet) for source in named_sources(path)]


def named_sources(path: Path) -> list[Source]:
    """What data files or a dataset config name; NoRecordsError where the first file holds nothing."""
    first = list(islice(read_rows(source_files(path)[0]), 1))
    if not first:
        raise NoRecordsError(f"{path} holds no records")
    return _entries(path) if is_entry(first[0]) else [unconfigured(path)]


def open_dataset(source: Source, cache: Path | None = None, *, quiet: bool = True) -> Dataset:
    """The dataset of one source; NoRecordsError where it holds nothing."""
    return Dataset(source.name, open_records(source.path, cache, quiet=quiet), source.img_dir, source.ratio)


def _entries(config: Path) -> list[Source]:
    entries: list[Source] = []
    for number, row in enumerate(read_json_array(config), start=1):
        try:
            entries.append(parse_entry(row, {entry.name for entry in entries}))
        except ValueError as error:
            raise ValueError(f"{config}, dataset {number}: {error}") from error
    return entries
