"""Command: `python -m instruction_dataset.convert NAME --source DIR --output out.json` turns a dataset into records."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import islice
from json.encoder import encode_basestring as quote
from pathlib import Path

from tqdm import tqdm

from instruction_dataset.catalogue import as_facts, as_markdown, as_table, find_sources, pick
from instruction_dataset.command import at_least, ended
from instruction_dataset.converting import Job, Source
from instruction_dataset.image_check import checking
from instruction_dataset.records import IMAGE_TAG, Record, written_whole

FRAMES = {True: ("", "\n", "\n"), False: ("[\n", ",\n", "\n]\n")}
"""What a file has before, between and after its records: JSON Lines, or a JSON array."""
USE = "python -m instruction_dataset.convert"
EXAMPLES = f"""\
examples:
  {USE} --list                      what can be converted, and where to get it
  {USE} --list llava-detail-23k     all that is known of one source
  {USE} llava-detail-23k --source ~/LLaVA-Instruct-150K --output llava.json
  {USE} llavar-20k --source ~/LLaVAR --image_root ~/LLaVAR/images --check_images --output llavar.json

Images stay where they are: records name them relative to --image_root, which becomes img_dir in a dataset config
(python -m instruction_dataset.mix writes one). The file appears when all of it is written; a run that fails or is
stopped leaves none.

exit code: 0 well, 1 where the source is malformed or a file cannot be read, 2 for wrong flags, 130 on Ctrl-C"""


def main(argv: list[str] | None = None) -> int:
    """Convert, or list; 0, 1 after one line on stderr, 130 on Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)

    def work() -> int:
        if args.list:
            sys.stdout.write(_listed(args))
        else:
            source = _chosen(parser, args)
            sys.stdout.write(convert(source, _job(parser, args, source), args))
        return 0

    return ended(work, args.output)


def convert(source: Source, job: Job, args: argparse.Namespace) -> str:
    """Write the records of a source, all of the file or none; what became of its rows, to print.

    Raises ValueError for what is malformed or missing, and where no record is left to write.
    """
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc=args.name, unit=" rows", unit_scale=True, disable=None))
        job.tick = lambda read: bar.update(read - bar.n)
        records: Iterable[Record] = source.convert(args.source, job)
        if args.check_images:
            records = stack.enter_context(checking(records, job, os.cpu_count() or 1, args.limit))
        file = stack.enter_context(written_whole(args.output))
        written, images = _write(islice(records, args.limit), file.write, args.output.suffix == ".jsonl")
        job.tick(job.read)
        if not written:
            flags = " and ".join(["--source", *(["--split"] if source.splits else [])])
            raise ValueError(f"{args.source} gives no record ({_reasons(job)}); check {flags}")
    return _summary(args, job, written, images)


def _write(records: Iterable[Record], write: Callable[[str], int], lines: bool) -> tuple[int, int]:
    """One record a line; how many they are, and how many images they name."""
    start, between, end = FRAMES[lines]
    written = images = tags = 0
    last, quoted = "", '""'
    for record in records:
        text = record.input
        if text.startswith(last):
            # the next record of a dialogue begins with the one before it: only what is new is quoted and looked at
            new = text[len(last) :]
            quoted = quoted[:-1] + quote(new)[1:]
        else:
            new, tags = text, 0
            quoted = quote(new)
        tags += new.count(IMAGE_TAG)
        write(f'{between if written else start}{{"input": {quoted}, "output": {quote(record.output)}}}')
        last = text
        written += 1
        images += tags // 2
    write(end)
    return written, images


def _summary(args: argparse.Namespace, job: Job, written: int, images: int) -> str:
    lines = [
        f"{args.output}\n",
        f"  read      {job.read:>12,}\n",
        f"  written   {written:>12,}\n",
        f"  images    {images:>12,}  named in them\n",
    ]
    lines += [f"  left out  {count:>12,}  {reason}\n" for reason, count in job.left_out.most_common()]
    if job.malformed:
        lines.append(f"  malformed {job.malformed:>12,}  skipped:\n")
        lines += [f"{'':26}{place}\n" for place in job.bad]
    return "".join(lines)


def _reasons(job: Job) -> str:
    parts = [f"{job.read:,} rows read", *(f"{reason}: {count:,}" for reason, count in job.left_out.most_common())]
    if job.malformed:
        parts.append(f"malformed: {job.malformed:,}, first {job.bad[0]}")
    return ", ".join(parts)


def _listed(args: argparse.Namespace) -> str:
    found = find_sources()
    if args.name:
        return as_facts(args.name, pick(args.name, found))
    if args.markdown:
        return as_markdown(found)
    return as_table(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Source:
    """The source of that name; what is missing for it ends the process with code 2."""
    if not args.name:
        parser.error("name a source, or see them all with --list")
    try:
        source = pick(args.name, find_sources())
    except ValueError as error:
        parser.error(str(error))
    for flag in ("source", "output"):
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing; {args.name} is made of {source.files}, from {source.origin}")
    return source


def _job(parser: argparse.ArgumentParser, args: argparse.Namespace, source: Source) -> Job:
    if args.split is not None and args.split not in source.splits:
        choices = f"choose one of {', '.join(source.splits)}" if source.splits else "it has none, leave --split out"
        parser.error(f"--split {args.split} is not a split of {args.name}; {choices}")
    if args.as_2023 and not source.as_2023:
        parser.error(f"--as_2023: {args.name} has no output of 2023 to give; leave the flag out")
    if args.image_root is not None and not args.image_root.is_dir():
        parser.error(f"--image_root {args.image_root} is no folder; name the one that image paths are relative to")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file")
    if args.output.exists() and args.source.resolve() in (args.output.resolve(), args.output.resolve().parent):
        parser.error(f"--output {args.output} is there, among the files of --source; remove it, or name one elsewhere")
    if args.check_images and args.image_root is None and args.image_output is None:
        parser.error("--check_images needs to know where the images lie; name their folder with --image_root")
    return Job(
        split=args.split or (source.splits[0] if source.splits else ""),
        seed=args.seed,
        image_root=args.image_root,
        image_output=args.image_output,
        as_2023=args.as_2023,
        skip_bad=args.skip_bad,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=USE,
        description="Turn a published dataset into instruction records, ready for training. Nothing is downloaded.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="the source, one of those that --list names")
    add("--source", type=Path, metavar="DIR", help="folder that holds what --list says to download")
    add(
        "--output", type=Path, metavar="FILE", help="file to write: a JSON array, or JSON Lines where it ends in .jsonl"
    )
    add(
        "--image_root", type=Path, metavar="DIR", help="folder that image paths are relative to; needed to look at them"
    )
    add(
        "--image_output",
        type=Path,
        metavar="DIR",
        help="folder for the images of a source that makes some (crops, frames)",
    )
    add(
        "--split",
        metavar="NAME",
        help="part of the dataset, where it has several (default: the first that --list names)",
    )
    add("--limit", type=partial(at_least, 1), metavar="N", help="stop after so many records")
    add("--seed", type=int, default=0, metavar="N", help="seed of every random choice (default: 0)")
    add(
        "--check_images",
        action="store_true",
        help="leave out records with missing or damaged images; decodes every image",
    )
    add(
        "--skip_bad",
        action="store_true",
        help="leave out and count malformed rows, rather than stop at the first; unsound JSON always stops",
    )
    add(
        "--as_2023",
        action="store_true",
        help="what the script of 2023 gave, with the faults it had, where --list NAME says that it can be had",
    )
    add("--list", action="store_true", help="print all sources as a table, or with NAME the facts of one")
    add("--markdown", action="store_true", help="with --list: as the table of docs/datasets.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
