"""Command: `python -m instruction_dataset.export_images --source LA.json --output DIR` writes MIMIC-IT's images as PNG."""

import argparse
import base64
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image, PngImagePlugin
from tqdm import tqdm

from instruction_dataset.command import at_least, ended
from instruction_dataset.converting import Row, members, rows
from instruction_dataset.image_files import read_image, save_image
from instruction_dataset.records import kind_of

ID_COLUMNS = ("id", "__index_level_0__")
"""Of Parquet, and of strings: a column, or the nameless index of a table that pandas wrote."""
BASE64_COLUMN = "base64"
SIDE = 336
AHEAD_PER_WORKER = 4
BROKEN_SHOWN = 20
LONGEST_TEXT_CHUNK = 64 << 20
"""Bytes. Some PNG files of MIMIC-IT carry color profiles longer than Pillow's own limit, one megabyte."""
WRITTEN, KEPT, BROKEN = "written", "kept", "broken"

USE = "python -m instruction_dataset.export_images"
EXAMPLES = f"""\
examples:
  {USE} --source MIMIC-IT/LA/LA.json --output images/mimic-it
  {USE} --source MIMIC-IT/SN/SN.parquet --output images/mimic-it

Each image becomes DIR/ID.png, its shorter side --size pixels long; DIR is then the --image_root of the converters
mimic-it-*. A file that is there already is kept, so a run that was stopped goes on where it was.

exit code: 0 well, 1 where an image is broken or a file cannot be read, 2 for wrong flags, 130 on Ctrl-C"""

Coded = tuple[str, Row]
"""The id of an image, and the row that holds it."""


@dataclass
class Outcome:
    """What became of the images."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """What is wrong with each, with its id."""


def main(argv: list[str] | None = None) -> int:
    """Export; 0, 1 after lines on stderr, 130 on Ctrl-C."""
    args = _parser().parse_args(argv)
    PngImagePlugin.MAX_TEXT_CHUNK = LONGEST_TEXT_CHUNK
    return ended(lambda: _run(args), args.output)


def _run(args: argparse.Namespace) -> int:
    outcome = Outcome()
    try:
        with tqdm(desc=args.source.name, unit=" images", disable=None) as bar:
            export(args.source, args.output, args.size, args.workers, outcome, bar.update)
    except KeyboardInterrupt:
        sys.stderr.write(f"{_summary(outcome, args.output)}the same command goes on from here\n")
        raise
    sys.stdout.write(_summary(outcome, args.output))
    for problem in outcome.broken[:BROKEN_SHOWN]:
        sys.stderr.write(f"broken: {problem}\n")
    if len(outcome.broken) > BROKEN_SHOWN:
        sys.stderr.write(f"broken: and {len(outcome.broken) - BROKEN_SHOWN:,} more\n")
    return 1 if outcome.broken else 0


def export(
    source: Path, output: Path, size: int, workers: int, outcome: Outcome, tick: Callable[[], object] = lambda: None
) -> None:
    """Write the images of a JSON or Parquet file under `output`, few of them in memory at a time; count in `outcome`.

    Raises ValueError for a file that is malformed, and for an id that is no file name.
    """
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for problem, fate in _in_order(pool, partial(_export, output, size), coded(source), workers):
                outcome.counts[fate] += 1
                outcome.broken += [problem] if problem else []
                tick()
        finally:
            pool.shutdown(cancel_futures=True)


def coded(source: Path) -> Iterator[Coded]:
    """The images of a file with their ids, streamed: `{ID: base64}` in JSON, or a Parquet table with a column `base64`."""
    if source.suffix.lower() != ".parquet":
        yield from members(source)
        return
    for row in rows(source):
        column = next((name for name in ID_COLUMNS if name in row), ID_COLUMNS[0])
        try:
            yield row.text(column), row._replace(value=row.text(BASE64_COLUMN))
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error


def _export(output: Path, size: int, image: Coded) -> tuple[str, str]:
    """What is wrong with an image, if anything, and what became of it."""
    name, row = image
    target = output / f"{name}.png"
    if target.exists():
        return "", KEPT
    try:
        picture = _decoded(name, row.value)
    except ValueError as error:
        return f"{row.where}: {error}", BROKEN
    save_image(resized(picture, size), target)
    return "", WRITTEN


def _decoded(name: str, text: object) -> Image.Image:
    if not isinstance(text, str):
        raise ValueError(f"image {name} must be base64 text, not {kind_of(text)}")
    try:
        # some parts of MIMIC-IT have - and _ for + and /
        data = base64.urlsafe_b64decode(text)
    except ValueError as error:
        raise ValueError(f"image {name} is not sound base64 ({error}); fetch the file again") from error
    return read_image(BytesIO(data), name)


def resized(image: Image.Image, size: int) -> Image.Image:
    """An image whose shorter side is `size` pixels long."""
    shorter = min(image.size)
    width, height = (round(side * size / shorter) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _named(image: Coded) -> Coded:
    """The image; ValueError where its id would lead out of the folder, or is no file name."""
    name, row = image
    if not name or name.startswith(".") or any(sign in name for sign in ("/", "\\", "\0")):
        raise ValueError(
            f"{row.where}: id {name!r} is no file name, and may lead out of the folder; correct the source"
        )
    return image


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Coded], tuple[str, str]], images: Iterable[Coded], workers: int
) -> Iterator[tuple[str, str]]:
    rest = map(_named, images)
    waiting: deque[Future[tuple[str, str]]] = deque(
        pool.submit(work, image) for image in islice(rest, AHEAD_PER_WORKER * workers)
    )
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, image) for image in islice(rest, 1))


def _summary(outcome: Outcome, output: Path) -> str:
    counts = (f"{outcome.counts[fate]:,} {fate}" for fate in (WRITTEN, KEPT, BROKEN))
    return f"{output}: {', '.join(counts)}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=USE,
        description="Write the images of MIMIC-IT, published as base64 in JSON or Parquet, as PNG files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("--source", type=Path, required=True, metavar="FILE", help="such as LA.json or LA.parquet")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the images; made if missing")
    add(
        "--size",
        type=partial(at_least, 1),
        default=SIDE,
        metavar="PX",
        help=f"length of the shorter side (default: {SIDE})",
    )
    add("--workers", type=partial(at_least, 1), default=cores, metavar="N", help="images at once (default: all cores)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
