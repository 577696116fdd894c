"""Command: `python -m instruction_dataset.check DATA [--html report.html]` finds what is wrong with instruction data.

Of this package it alone imports the training code, to count, cut and open exactly as a run will.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise, zip_longest
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from instruction_dataset.command import at_least, sigterm_unwinds
from instruction_dataset.dataset_config import Source, is_entry, parse_entry, unconfigured
from instruction_dataset.dialogue import ASSISTANT, HUMAN, NEXT_TURN
from instruction_dataset.findings import Findings, Health, Kind, Picture, Report, Sample, Segment, table
from instruction_dataset.pictures import look_at_all, processes, thumbnail
from instruction_dataset.reading import read_rows, source_files
from instruction_dataset.records import IMAGE_TAG, Record, split_images, write_whole
from instruction_dataset.report import render
from instruction_dataset.scan import ImageList, Length, Rules, Scan
from open_flamingo.instruction_tuning.command import run
from open_flamingo.instruction_tuning.data.conversation import Conversation, TurnTokenizer
from open_flamingo.instruction_tuning.data.images import open_image
from open_flamingo.instruction_tuning.data.prompts import TEMPLATES
from open_flamingo.src.factory import END_OF_CHUNK_TOKEN, MEDIA_TOKEN, add_special_tokens, load_part

LONGEST_TEXT = 4000
"""Characters of a sample that no tokenizer cuts to --max_length."""
PICTURES_SHOWN = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print, and write the page if asked; 1 where training would fail."""
    args = _parser().parse_args(argv)
    if args.html is not None:
        _refuse_unwritable(args.html)
    sources, config = _sources(args.path)
    # the processes before all else: tokenizing starts threads, which a fork does not copy
    with sigterm_unwinds(), processes(args.workers) as pool:
        turns = _turn_tokenizer(args.tokenizer, args.instruction_prompt_template) if args.tokenizer else None
        scans, images = _examine(sources, _rules(args, turns), pool, args.workers)
    datasets = [scan.health for scan in scans]
    _judge(config, datasets)
    report = Report(
        path=args.path,
        config=config,
        datasets=datasets,
        images=images,
        samples=list(_samples(scans, turns, args)) if args.html is not None else [],
        max_length=args.max_length if turns else None,
        settings=_settings(args),
    )
    sys.stdout.write("".join(f"{line}\n" for line in table(report)))
    if args.html is not None:
        write_whole(args.html, render(report))
        sys.stdout.write(f"\nthe page: {args.html.absolute()}\n")
    return 1 if report.total(fails=True) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instruction_dataset.check",
        description="Find what is wrong with instruction data before training does.",
        epilog="exit code: 1 where training would fail, else 0; warnings do not fail",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, metavar="DATA", help="a dataset config, a data file, or a folder of shards")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write what was found as one page, with samples")
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub name; lengths are then of tokens")
    parser.add_argument(
        "--instruction_prompt_template",
        "--instruction_prompt_templete",
        choices=TEMPLATES,
        default="guanaco",
        help="how an instruction becomes a prompt (default: %(default)s)",
    )
    for name, least, default, text in (
        ("max_length", 1, 256, "tokens per sample, at most"),
        ("max_img", 0, 5, "images per sample, at most"),
        ("workers", 1, os.cpu_count() or 1, "processes that decode images"),
        ("samples", 0, 24, "random records on the page"),
        ("seed", 0, 0, "of the choice of records"),
    ):
        kind = partial(at_least, least)
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    return parser


def _refuse_unwritable(page: Path) -> None:
    """Before the long work, not after it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    if page.is_dir() or not os.access(page.parent, os.W_OK):
        raise ValueError(f"--html {page} cannot be written; name a file in a folder that you may write to")


def _sources(path: Path) -> tuple[list[Source], Findings]:
    """The datasets of a config, or the one of data files, and what is wrong with the config."""
    findings = Findings()
    sources: list[Source] = []
    file = source_files(path)[0]
    try:
        first = list(islice(read_rows(file), 1))
    except ValueError:
        first = []  # the pass over it tells
    if not (first and is_entry(first[0])):
        return [unconfigured(path)], findings
    try:
        for number, row in enumerate(read_rows(file), start=1):
            try:
                sources.append(parse_entry(row, {source.name for source in sources}))
            except ValueError as error:
                findings.add(Kind.CONFIG, f"{path}, dataset {number}: {error}")
    except ValueError as error:
        findings.add(Kind.CONFIG, str(error))
    return sources, findings


def _turn_tokenizer(name: str, template: str) -> TurnTokenizer:
    logging.set_verbosity_error()  # it warns of texts that are longer than its model takes, which we count ourselves
    tokenizer = load_part(AutoTokenizer, name, "tokenizer")
    add_special_tokens(tokenizer)
    return TurnTokenizer(tokenizer, int(tokenizer.vocab[MEDIA_TOKEN]), template)


def _rules(args: argparse.Namespace, turns: TurnTokenizer | None) -> Rules:
    special = turns.tokenizer.all_special_tokens if turns else [MEDIA_TOKEN, END_OF_CHUNK_TOKEN]
    literals = {*special, HUMAN.strip(), ASSISTANT.strip(), IMAGE_TAG}
    return Rules(
        literals=re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True)))),
        max_img=args.max_img,
        max_length=args.max_length,
        measure=partial(_lengths, turns) if turns else None,
        samples=args.samples if args.html else 0,
        seed=args.seed,
    )


def _lengths(turns: TurnTokenizer, records: Sequence[Record]) -> list[Length]:
    """The tokens of records as training counts them; equal texts are tokenized once."""
    texts: dict[str, list[int]] = {}
    for record in records:
        turns.turns(record, first=True, encode=lambda text: texts.setdefault(text, []))
    encode = turns.encoder(texts)
    lengths = []
    for record in records:
        parts = turns.turns(record, first=True, encode=encode)
        prompts, answers = sum(len(turn.prompt) for turn in parts), sum(len(turn.answer) for turn in parts)
        lengths.append(Length(len(parts[0].prompt), prompts, answers))
    return lengths


def _examine(
    sources: Sequence[Source], rules: Rules, pool: ProcessPoolExecutor, workers: int
) -> tuple[list[Scan], int]:
    """Read all records, then decode all images, each once; the passes, and how many images there are."""
    with ImageList() as images:
        scans = [Scan(source, number, rules, images) for number, source in enumerate(sources)]
        for scan in scans:
            scan.run()
        with tqdm(total=len(images), desc="decoding images", unit=" images", unit_scale=True, disable=None) as bar:
            for use, problem in look_at_all(pool, images, open_image, 4 * workers):
                if problem:
                    scans[use.dataset].health.findings.add(problem[0], f"{use.where}: {problem[1]}")
                bar.update()
        return scans, len(images)


def _judge(config: Findings, datasets: Sequence[Health]) -> None:
    """What only all records together tell."""
    if not any(health.usable and health.source.ratio > 0 for health in datasets):
        config.add(Kind.NO_RECORDS, "no dataset with a positive ratio has a usable record; correct what is named below")
        return
    for health in datasets:
        if health.records and not health.usable:
            health.findings.add(
                Kind.NONE_USABLE, f"{health.source.path}: no record of it can be trained on; leave it out"
            )


def _samples(scans: Sequence[Scan], turns: TurnTokenizer | None, args: argparse.Namespace) -> Iterator[Sample]:
    """The random records of the page, as evenly from all datasets as these allow."""
    rounds = zip_longest(*([(scan.health.source, *item) for item in scan.reservoir.items] for scan in scans))
    chosen = [choice for choices in rounds for choice in choices if choice is not None]
    for source, where, record in chosen[: args.samples]:
        if turns is None:
            paths = [path for text, _ in record.turns for path in split_images(text)[1]]
            segments, note = written(record, args.instruction_prompt_template), ""
        else:
            conversation = Conversation()
            conversation.extend(turns.turns(record, first=True))
            length = len(conversation.ids)
            conversation.cut(args.max_length, turns.media_token_id)
            note = f"{length:,} tokens, trained on {sum(conversation.supervised):,}"
            paths, segments = conversation.images, decoded(conversation, turns.tokenizer)
        whole = [Path(source.img_dir, path) for path in paths[:PICTURES_SHOWN]]
        yield Sample(source.name, where, note, segments, [Picture(str(p), thumbnail(p, open_image)) for p in whole])


def decoded(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The text of a conversation's ids, cut where supervision changes and around special tokens."""
    special = set(tokenizer.all_special_ids)
    marks = [(wanted, i in special) for i, wanted in zip(conversation.ids, conversation.supervised, strict=True)]
    changes = [i for i, (a, b) in enumerate(pairwise(marks), start=1) if a != b or b[1]]
    segments, before = [], ""
    for start, end in pairwise([0, *changes, len(marks)]):
        # some tokenizers drop a space at the start of what they decode, so each text is the end of a longer one
        text = _decode(tokenizer, conversation.ids[:end])
        follows = text.startswith(before)
        alone = text.removeprefix(before) if follows else _decode(tokenizer, conversation.ids[start:end])
        segments.append(Segment(alone, *marks[start]))
        before = text
    return segments


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def written(record: Record, template: str) -> list[Segment]:
    """The text of a record in its template; a long one is cut, by characters."""
    segments, opening = [], TEMPLATES[template]
    for text, answer in record.turns:
        first, *pieces = split_images(text)[0]
        segments.append(Segment(opening + first))
        for piece in pieces:
            segments += [Segment(MEDIA_TOKEN, special=True), Segment(piece)]
        segments += [Segment(ASSISTANT), Segment(answer, supervised=True)]
        opening = NEXT_TURN
    room, kept = LONGEST_TEXT, []
    for segment in segments:
        if room > 0:
            kept.append(replace(segment, text=segment.text[:room]))
        room -= len(segment.text)
    return [*kept, Segment(f" ... and {-room:,} more characters")] if room < 0 else kept


def _settings(args: argparse.Namespace) -> dict[str, str]:
    names = ("tokenizer", "instruction_prompt_template", "max_length", "max_img")
    return {name: "not given" if getattr(args, name) is None else str(getattr(args, name)) for name in names}


if __name__ == "__main__":
    run(main)
