"""Instruction data as it lies on disk: data files, or a config that names several, told apart by their content."""

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
        datasets = [_configured(path, i, row, cache, quiet) for i, row in enumerate(read_json_array(path))]
        _refuse_repeated_names(path, datasets)
        return datasets
    return [Dataset(path.name.partition(".")[0], open_records(path, cache, quiet=quiet))]


def _configured(config: Path, index: int, row: object, cache: Path | None, quiet: bool) -> Dataset:
    where = f"{config}, dataset {index + 1}"
    if not isinstance(row, dict) or row.keys() != CONFIG_KEYS:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: expected the keys {sorted(CONFIG_KEYS)}, found {keys}")
    for key in ("dataset_name", "json_path", "img_dir"):
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key} must be a string, not {row[key]!r}")
    ratio = row["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio < 0:
        raise ValueError(f"{where}: ratio must be a number of at least 0, not {ratio!r}")
    records = open_records(Path(row["json_path"]), cache, quiet=quiet)
    return Dataset(row["dataset_name"], records, row["img_dir"], float(ratio))


def _refuse_repeated_names(path: Path, datasets: list[Dataset]) -> None:
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: dataset_name {name!r} is used twice; results are filed by it, so rename one")
