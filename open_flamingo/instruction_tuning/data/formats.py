"""Instruction data as it lies on disk: a data file, or a config that names several, told apart by their content."""

from dataclasses import dataclass
from pathlib import Path

from instruction_dataset.records import Record, parse_record, read_json_array

CONFIG_KEYS = {"dataset_name", "json_path", "img_dir", "ratio"}


@dataclass(frozen=True)
class Dataset:
    """The records of one source, in memory."""

    name: str
    path: Path
    records: list[Record]
    img_dir: str = ""
    ratio: float = 1.0

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        return f"{self.path}, record {index + 1}"

    def image_path(self, path: str) -> Path:
        """A record's image path, made whole with the folder of the dataset's images."""
        return Path(self.img_dir, path)


def load_datasets(path: Path) -> list[Dataset]:
    """The datasets of a data file (one) or of a dataset config (each it names).

    Raises ValueError naming the file and the record where something is malformed or empty.
    """
    rows = read_json_array(path)
    if not rows:
        raise ValueError(f"{path} holds no records")
    if isinstance(rows[0], dict) and "json_path" in rows[0]:
        datasets = [_configured(path, i, row) for i, row in enumerate(rows)]
        _refuse_repeated_names(path, datasets)
        return datasets
    return [Dataset(path.stem, path, _records(path, rows))]


def _configured(config: Path, index: int, row: object) -> Dataset:
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
    path = Path(row["json_path"])
    rows = read_json_array(path)
    if not rows:
        raise ValueError(f"{path} ({where}) holds no records")
    return Dataset(row["dataset_name"], path, _records(path, rows), row["img_dir"], float(ratio))


def _records(path: Path, rows: list[object]) -> list[Record]:
    records = []
    for i, row in enumerate(rows):
        try:
            records.append(parse_record(row))
        except ValueError as error:
            raise ValueError(f"{path}, record {i + 1}: {error}") from error
    return records


def _refuse_repeated_names(path: Path, datasets: list[Dataset]) -> None:
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: dataset_name {name!r} is used twice; results are filed by it, so rename one")
