"""The grammar of dataset configs: which data files a mixture is made of, where their images lie, and in which shares."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

CONFIG_KEYS = ("dataset_name", "json_path", "img_dir", "ratio")


@dataclass(frozen=True)
class Source:
    """A dataset that a config names, or data files named themselves."""

    name: str
    path: Path
    img_dir: str = ""
    ratio: float = 1.0


def is_entry(row: object) -> bool:
    """True for an entry of a config, False for a record: the first row of a file tells which of the two it holds."""
    return isinstance(row, dict) and "json_path" in row


def unconfigured(path: Path) -> Source:
    """The one dataset of data files that no config names."""
    return Source(path.name.partition(".")[0], path)


def parse_entry(row: object, taken: Collection[str]) -> Source:
    """An entry of a dataset config; ValueError for what is wrong with it, and for a name that is `taken`."""
    if not isinstance(row, dict) or row.keys() != set(CONFIG_KEYS):
        keys = sorted(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"expected the keys {sorted(CONFIG_KEYS)}, found {keys}")
    for key in ("dataset_name", "json_path", "img_dir"):
        if not isinstance(row[key], str):
            raise ValueError(f"{key} must be a string, not {row[key]!r}")
    name, ratio = row["dataset_name"], row["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio >= 0:
        raise ValueError(f"ratio must be a number of at least 0, not {ratio!r}")
    if not name.strip(" .") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"dataset_name {name!r} is no file name; results are filed by it, so choose a plain one")
    if name in taken:
        raise ValueError(f"dataset_name {name!r} is used twice; results are filed by it, so rename one")
    return Source(name, Path(row["json_path"]), row["img_dir"], float(ratio))
