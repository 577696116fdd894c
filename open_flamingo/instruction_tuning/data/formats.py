"""Instruction data as it lies on disk: data files, or a config that names several, told apart by their content."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from instruction_dataset.dataset_config import Source, is_entry, parse_entry, unconfigured
from instruction_dataset.reading import read_rows, source_files
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
    first = list(islice(read_rows(source_files(path)[0]), 1))
    if not first:
        raise ValueError(f"{path} holds no records")
    sources = _entries(path) if is_entry(first[0]) else [unconfigured(path)]
    return [Dataset(s.name, open_records(s.path, cache, quiet=quiet), s.img_dir, s.ratio) for s in sources]


def _entries(config: Path) -> list[Source]:
    entries: list[Source] = []
    for number, row in enumerate(read_json_array(config), start=1):
        try:
            entries.append(parse_entry(row, {entry.name for entry in entries}))
        except ValueError as error:
            raise ValueError(f"{config}, dataset {number}: {error}") from error
    return entries
