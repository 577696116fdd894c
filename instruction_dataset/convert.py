"""Command: `python -m instruction_dataset.convert NAME --output DIR` writes one source as datasets and their configs."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from instruction_dataset.records import parse_record, read_json_array, split_images
from instruction_dataset.sources.digits import write_digits


@dataclass(frozen=True)
class Source:
    """What the command knows of a source: a line for --help, and its writer, from folder and seed to training config.

    Every writer puts a `held_out.json` beside its training config.
    """

    write: Callable[[Path, int], Path]
    help: str


SOURCES = {
    "digits": Source(
        write_digits,
        "scikit-learn's 1,797 handwritten digits: which digit, the larger of two, the sum of two; "
        "train.json and held_out.json are the configs. Needs scikit-learn; downloads nothing.",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Convert the named source; 0, or 1 after one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        train = SOURCES[args.name].write(args.output, args.seed)
        for config in (train, train.with_name("held_out.json")):
            sys.stdout.write(_summary(config))
    except OSError as error:
        place = error.filename or args.output
        sys.stderr.write(f"error: cannot write {place}: {error.strerror}; give --output a folder you may write to\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(
        fill(f"{name}: {source.help}", initial_indent="  ", subsequent_indent="    ")
        for name, source in SOURCES.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m instruction_dataset.convert",
        description="Turn a source dataset into instruction records, ready for training.",
        epilog=f"names:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=SOURCES, metavar="NAME", help="the source, one of the names below")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; made if missing")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    return parser


def _summary(config: Path) -> str:
    """What a config mixes: its path, then one line per dataset with its records and distinct images."""
    lines = [f"{config}\n"]
    for entry in read_json_array(config):
        records = [parse_record(raw) for raw in read_json_array(Path(entry["json_path"]))]
        images = {path for record in records for path in split_images(record.input)[1]}
        lines.append(f"  {entry['dataset_name']}: {len(records)} records, {len(images)} images\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
