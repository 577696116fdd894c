"""Command: `python -m instruction_dataset.mix A=2 B=1 --output config.json` writes a dataset config of converted files."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from instruction_dataset.command import ended
from instruction_dataset.dataset_config import parse_entry
from instruction_dataset.formats import parse_row
from instruction_dataset.reading import read_rows, source_files
from instruction_dataset.records import read_json_array, write_json

CONFIGS = Path(__file__).parent / "configs"
RECIPES = {"clever_flamingo_v2": "datasets.json"}
"""Mixtures that ship with this package, as files of its folder `configs`."""
CONVERTED = Path("instruction_dataset", "converted_datasets")
ENDINGS = (".json", ".jsonl")
SHARES: Mapping[str, Callable[[int], float]] = {
    "records": float,
    "sqrt": lambda records: round(math.sqrt(records), 2),
    "equal": lambda _records: 1.0,
}
"""Ratios of files that are given none, out of how many records they hold."""
USE = "python -m instruction_dataset.mix"
EXAMPLES = f"""\
examples:
  {USE} llava-detail-23k=1.3 sharegpt=1.27 --output datasets.json
  {USE} data/a.json data/b.jsonl --by sqrt --output datasets.json
  {USE} llava-detail-23k lrv --img_dir llava-detail-23k=~/coco --img_dir lrv=~/vg --output datasets.json
  {USE} --recipe clever_flamingo_v2 --allow_missing --output datasets.json

A ratio is a share: 3 to 1 draws three samples of the one for each of the other (train.py --dataset_sampling_mode
ratio), whatever their sizes. Give a ratio to all or to none. Without them it is the number of records (--by records),
as if all files were one; its square root (--by sqrt) helps the small ones; --by equal draws from all alike.

Then: python -m instruction_dataset.check datasets.json
exit code: 0 well, 1 where a file is missing or holds no records, 2 for wrong flags"""


@dataclass(frozen=True)
class Entry:
    """A dataset of a config, its fields as there."""

    dataset_name: str
    json_path: str
    img_dir: str
    ratio: float


def main(argv: list[str] | None = None) -> int:
    """Write a config and print its shares; 0, 1 after one line on stderr, 130 on Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    if bool(args.datasets) == bool(args.recipe):
        parser.error(f"name either converted files or --recipe {' or '.join(RECIPES)}")
    if args.recipe and args.by:
        parser.error("--by makes ratios, and the recipe has its own; leave one of the two out")
    if args.allow_missing and not args.recipe:
        parser.error("--allow_missing is for a --recipe; leave out the datasets that are not there")

    def work() -> int:
        entries = _with_images(_recipe(args) if args.recipe else _given(parser, args), args.img_dir)
        if str(args.output.resolve()) in (entry.json_path for entry in entries):
            raise ValueError(f"--output {args.output} is one of the files to mix; name another")
        write_json(args.output, [asdict(entry) for entry in entries])
        sys.stdout.write(f"{args.output}\n{_table(entries)}")
        return 0

    return ended(work, args.output)


def _given(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Entry]:
    """The entries of the files that the command names."""
    named = [_split_ratio(text) for text in args.datasets]
    if 0 < sum(ratio is not None for _, ratio in named) < len(named):
        parser.error("some datasets have a ratio and some have none; give NAME=RATIO for all, or for none")
    if args.by and named[0][1] is not None:
        parser.error("--by makes ratios, and the datasets have theirs; leave one of the two out")
    entries: dict[str, Entry] = {}
    for name, ratio in named:
        path = _find(name, args.converted)
        entry = Entry(_name(path), str(path.resolve()), "", ratio or 0.0)
        if entry.dataset_name in entries:
            raise ValueError(f"two files are named {entry.dataset_name!r}, by which results are filed; rename one")
        entries[entry.dataset_name] = entry
    for entry in entries.values():
        _refuse_no_records(Path(entry.json_path))
    if named[0][1] is not None:
        return list(entries.values())
    share = SHARES[args.by or "records"]
    return [replace(entry, ratio=share(_count(Path(entry.json_path)))) for entry in entries.values()]


def _recipe(args: argparse.Namespace) -> list[Entry]:
    """The entries of a recipe, each with the file that is there for it."""
    entries, missing = [], []
    for row in read_json_array(CONFIGS / RECIPES[args.recipe]):
        source = parse_entry(row, ())
        if (path := _existing(args.converted / source.path.stem)) is None:
            missing.append(source.path.stem)
            continue
        _refuse_no_records(path)
        entries.append(Entry(source.name, str(path.resolve()), source.img_dir, source.ratio))
    if missing and not args.allow_missing:
        raise ValueError(
            f"{args.converted} lacks {len(missing)} of the datasets of {args.recipe}: {', '.join(missing)}; "
            "convert them, or leave them out with --allow_missing"
        )
    if not entries:
        raise ValueError(f"{args.converted} holds none of the datasets of {args.recipe}; convert some into it")
    if missing:
        sys.stderr.write(f"left out, not in {args.converted}: {', '.join(missing)}\n")
    return entries


def _split_ratio(text: str) -> tuple[str, float | None]:
    """`NAME=RATIO` as the two; a file whose name itself holds '=' is one."""
    name, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, None
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not (0 < ratio < math.inf):
        raise ValueError(f"{text!r} must end with a ratio above 0, not {number!r}; write {name}=1")
    return name, ratio


def _find(name: str, converted: Path) -> Path:
    if (path := _existing(converted / name)) is not None:
        return path
    if Path(name).exists():
        return Path(name)
    raise ValueError(f"neither {name} nor {converted / name}.json exists; convert it, or correct --converted")


def _existing(stem: Path) -> Path | None:
    return next((path for path in (stem.with_name(stem.name + end) for end in ENDINGS) if path.is_file()), None)


def _refuse_no_records(path: Path) -> None:
    """ValueError where the first row is none, or is no record."""
    first = list(islice(read_rows(source_files(path)[0]), 1))
    if not first:
        raise ValueError(f"{path} holds no records; convert it again")
    try:
        parse_row(first[0])
    except ValueError as error:
        raise ValueError(f"{path}, record 1: {error}") from error


def _count(path: Path) -> int:
    files = source_files(path)
    rows = tqdm((row for file in files for row in read_rows(file)), desc=path.name, unit=" records", disable=None)
    return sum(1 for _ in rows)


def _with_images(entries: Sequence[Entry], given: Sequence[str]) -> list[Entry]:
    """The entries with the folders of `--img_dir [NAME=]DIR`; a folder with a name is for that dataset alone."""
    everywhere: str | None = None
    folders: dict[str, str] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        named = [entry for entry in entries if equals and name in (entry.dataset_name, _name(Path(entry.json_path)))]
        if equals and not named and not Path(text).is_dir():
            known = ", ".join(_name(Path(entry.json_path)) for entry in entries)
            raise ValueError(f"--img_dir {text} names no dataset of the mixture; they are {known}")
        path = Path(folder if named else text).expanduser().resolve()
        if not path.is_dir():
            raise ValueError(f"--img_dir {text}: {path} is no folder; name the one that image paths are relative to")
        everywhere = everywhere if named else str(path)
        folders |= {entry.dataset_name: str(path) for entry in named}
    return [replace(e, img_dir=folders.get(e.dataset_name, everywhere or e.img_dir)) for e in entries]


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def _table(entries: Sequence[Entry]) -> str:
    total = sum(entry.ratio for entry in entries)
    width = max(len(entry.dataset_name) for entry in entries)
    lines = [f"  {'dataset':<{width}}  {'ratio':>12}  {'share':>7}"]
    lines += [f"  {e.dataset_name:<{width}}  {e.ratio:>12,.10g}  {e.ratio / total:>7.2%}" for e in entries]
    return "".join(f"{line}\n" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=USE,
        description="Write a dataset config, which mixes converted files in given shares.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("datasets", nargs="*", metavar="NAME_OR_PATH[=RATIO]", help="a data file, or the name of one in --converted")
    add("--output", type=Path, required=True, metavar="FILE", help="the config to write")
    add("--by", choices=SHARES, help="what ratios are made of where none is given (default: records)")
    add("--converted", type=Path, default=CONVERTED, metavar="DIR", help="where named files lie (default: %(default)s)")
    add(
        "--img_dir",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="folder that image paths are relative to, of all datasets or of one; may be given several times",
    )
    add(
        "--recipe",
        choices=RECIPES,
        help="a mixture with its ratios, of the files in --converted named as the converters",
    )
    add("--allow_missing", action="store_true", help="with --recipe: leave out datasets that are not there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
