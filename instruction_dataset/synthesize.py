"""Command: `python -m instruction_dataset.synthesize --records N --output DIR` writes made-up data of a realistic shape.

For measuring at scale: six datasets of very different size, skewed lengths and image counts, words by Zipf's law. Every
batch of records and every image is drawn from (seed, its place) alone, so the bytes do not depend on who writes them.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from instruction_dataset.command import at_least, ended
from instruction_dataset.dataset_config import CONFIG_KEYS
from instruction_dataset.records import image_tag, split_images, write_json
from instruction_dataset.words import ASK, STOP, texts

RECORD_BATCH, IMAGE_BATCH, BATCHES_AHEAD = 500, 16, 32
SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the threads of the caller
Drawn = tuple[int, bytes]
"""How many records or images a batch made, and its bytes where they are for the parent to write."""
UNFINISHED = ".unfinished"
CONFIG = "config.json"
IMAGE_FOLDERS = ("street", "indoor", "nature", "people")
FORMATS = {"jsonl": ("", "\n", "\n"), "json": ("[\n", ",\n", "\n]\n")}
"""What a file has before, between and after its records."""


@dataclass(frozen=True)
class Shape:
    """How one dataset looks: words and turns as (median, sigma) of a log-normal, images as weights of 0, 1, 2 ...

    `share` is in thousandths of all records; with `turns` the records are dialogues in the form of LLaVA.
    """

    name: str
    share: int
    ratio: int
    prompt: tuple[float, float]
    answer: tuple[float, float]
    images: tuple[int, ...]
    turns: tuple[float, float] | None = None


SHAPES = (
    Shape("captions", 500, 30, (13, 0.5), (34, 0.8), (0, 1)),
    Shape("visual-questions", 250, 25, (26, 0.7), (32, 1.1), (0, 95, 5)),
    Shape("detailed-descriptions", 120, 20, (24, 0.5), (250, 0.5), (0, 90, 8, 2)),
    Shape("comparisons", 80, 12, (50, 0.6), (110, 0.7), (0, 0, 50, 22, 12, 7, 4, 3, 2)),
    Shape("text-only", 45, 10, (90, 1.1), (260, 0.8), (1,)),
    Shape("dialogues", 5, 3, (24, 0.8), (110, 0.7), (50, 40, 7, 3), turns=(5, 0.6)),
)
FEWEST_RECORDS = 1000 // min(shape.share for shape in SHAPES)
MOST_WORDS, MOST_TURNS = 1000, 24
MOST_IMAGES = max(len(shape.images) for shape in SHAPES) - 1


def main(argv: list[str] | None = None) -> int:
    """Write the datasets; 0, or 1 after one line on stderr, 130 on Ctrl-C."""
    args = _parser().parse_args(argv)

    def work() -> int:
        try:
            config = synthesize(**vars(args))
        except BrokenExecutor as error:
            raise ValueError("a worker process was killed, often for lack of memory; give fewer --workers") from error
        except OSError as error:
            place = f"cannot write {error.filename or args.output}: {error.strerror}"
            raise ValueError(f"{place}; give --output a folder with space to write") from error
        sys.stdout.write(f"{config}: {args.records} records in {len(SHAPES)} datasets, {args.images} images\n")
        return 0

    return ended(work, args.output)


def synthesize(
    output: Path, *, records: int, images: int, image_size: int, seed: int, format: str, workers: int
) -> Path:
    """Write images, datasets and, last, the config under `output`, or leave nothing there; the path of the config.

    Raises ValueError for a folder that holds anything but the remains of a killed run.
    """
    folder = output.resolve()
    _claim(folder)
    paths = [folder / f"{shape.name}.{format}" for shape in SHAPES]
    try:
        with ProcessPoolExecutor(workers, SPAWN, initializer=_start_worker) as pool:
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit, from their first line
            for _ in range(workers):
                pool.submit(os.getpid)
            signal.signal(signal.SIGINT, handler)
            _write_images(pool, folder / "images", seed, images, image_size)
            with tqdm(total=records, desc="records", unit="record", unit_scale=True) as bar:
                for index, (path, count) in enumerate(zip(paths, _counts(records))):
                    starts = range(0, count, RECORD_BATCH)
                    jobs = ((seed, index, i, min(RECORD_BATCH, count - i), images, format) for i in starts)
                    _write_data(path, format, _in_order(pool, _batch, jobs, bar))
        rows = ((shape.name, str(path), str(folder / "images"), shape.ratio) for shape, path in zip(SHAPES, paths))
        write_json(folder / CONFIG, [dict(zip(CONFIG_KEYS, row)) for row in rows])
        (folder / UNFINISHED).unlink()
    except BaseException:
        _clear(folder)
        raise
    return folder / CONFIG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instruction_dataset.synthesize",
        description="Write made-up instruction data of a realistic, skewed shape, to measure training and loading with.",
        epilog="example: a million records; then train with /tmp/million/config.json as the dataset config\n"
        "  python -m instruction_dataset.synthesize --records 1000000 --output /tmp/million\n\n"
        "The words are in no order and the answers say nothing of the images: there is nothing to learn here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, some, any_number = parser.add_argument, partial(at_least, 1), partial(at_least, 0)
    enough, cores = partial(at_least, FEWEST_RECORDS), os.cpu_count() or 1
    add("--records", type=enough, required=True, metavar="N", help="records of all six datasets together")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write; new, empty or of a killed run")
    add("--images", type=some, default=2000, metavar="N", help="JPEG images to draw (default: 2000)")
    add("--image_size", type=some, default=336, metavar="PX", help="about the length of their sides (default: 336)")
    add("--seed", type=any_number, default=0, metavar="N", help="seed of every random choice (default: 0)")
    add("--format", choices=FORMATS, default="jsonl", help="JSON Lines or a JSON array (default: jsonl)")
    add(
        "--workers", type=some, default=cores, metavar="N", help="processes; no byte depends on it (default: all cores)"
    )
    return parser


def _claim(folder: Path) -> None:
    """Make `folder` ours: empty of what a killed run left, and marked as unfinished."""
    remains = (folder / UNFINISHED).exists() and not (folder / CONFIG).exists()
    if folder.is_dir() and any(folder.iterdir()) and not remains:
        raise ValueError(f"{folder} is not empty; empty it, or give --output another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    (folder / UNFINISHED).touch()


def _clear(folder: Path) -> None:
    """Remove the files this command writes, and no other; the mark last, so that a kill here can be repaired too."""
    if (folder / "images").exists():
        shutil.rmtree(folder / "images")
    for name in (CONFIG, *(f"{shape.name}.{format}" for shape in SHAPES for format in FORMATS), UNFINISHED):
        (folder / name).unlink(missing_ok=True)


def _counts(records: int) -> list[int]:
    """The records of each dataset, which sum to `records`; the first takes what rounding leaves."""
    counts = [records * shape.share // 1000 for shape in SHAPES]
    return [counts[0] + records - sum(counts), *counts[1:]]


def _start_worker() -> None:
    """End with the parent: a killed one must leave no process behind."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _in_order(
    pool: Executor, work: Callable[..., Drawn], jobs: Iterable[tuple[Any, ...]], bar: tqdm
) -> Iterator[bytes]:
    """The results of `work` over `jobs` in their order, few at a time in memory; `bar` moves on by what each counts."""
    rest = iter(jobs)
    waiting = deque(pool.submit(work, *job) for job in islice(rest, BATCHES_AHEAD))
    while waiting:
        done, result = waiting.popleft().result()
        waiting.extend(pool.submit(work, *job) for job in islice(rest, 1))
        bar.update(done)
        yield result


def _write_data(path: Path, format: str, batches: Iterator[bytes]) -> None:
    before, between, after = (text.encode() for text in FORMATS[format])
    with path.open("wb") as file:
        file.write(before + next(batches))
        file.writelines(between + batch for batch in batches)
        file.write(after)


def _batch(seed: int, index: int, start: int, count: int, images: int, format: str) -> Drawn:
    """`count` records of a dataset from `start` on, as they stand in its file."""
    rng = np.random.default_rng([seed, 1, index, start])
    encode = json.JSONEncoder(ensure_ascii=False).encode
    return count, FORMATS[format][1].join(map(encode, _records(rng, SHAPES[index], count, images))).encode()


def _records(rng: np.random.Generator, shape: Shape, count: int, images: int) -> Iterator[dict[str, object]]:
    turns = _log_normal(rng, shape.turns or (1, 0), count, MOST_TURNS)
    prompts = iter(texts(rng, _log_normal(rng, shape.prompt, turns.sum(), MOST_WORDS), ASK))
    answers = iter(texts(rng, _log_normal(rng, shape.answer, turns.sum(), MOST_WORDS), STOP))
    for head, length in zip(_heads(rng, shape, count, images), turns.tolist()):
        if shape.turns is None:
            yield {"input": head + next(prompts), "output": next(answers)}
        else:
            yield _conversation(head, zip(islice(prompts, length), answers))


def _conversation(head: str, exchanges: Iterable[tuple[str, str]]) -> dict[str, object]:
    first, *others = [text for exchange in exchanges for text in exchange]
    pieces, paths = split_images(head + first)
    said = ["<image>".join(pieces), *others]
    return {
        "image": paths,
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)],
    }


def _log_normal(rng: np.random.Generator, shape: tuple[float, float], count: int, most: int) -> np.ndarray:
    median, sigma = shape
    return np.clip(rng.lognormal(np.log(median), sigma, count).round().astype(np.int64), 1, most)


def _heads(rng: np.random.Generator, shape: Shape, count: int, images: int) -> list[str]:
    """The images that open each record, no image twice in one; several are numbered."""
    weights = np.array(shape.images) / sum(shape.images)
    amounts = np.minimum(rng.choice(len(weights), count, p=weights), images)
    # steps so short that even the most images of a record never come round to the first
    steps = rng.integers(1, max(2, images // MOST_IMAGES + 1), (count, MOST_IMAGES))
    numbers = (rng.integers(images, size=(count, 1)) + np.cumsum(steps, axis=1)) % images
    return [_head(row[:amount]) for row, amount in zip(numbers.tolist(), amounts.tolist())]


def _head(numbers: list[int]) -> str:
    tags = [image_tag(_image_path(number)) for number in numbers]
    return "".join(tags) if len(tags) < 2 else "".join(f"Image {i}: {tag}\n" for i, tag in enumerate(tags, start=1))


def _image_path(number: int) -> str:
    return f"{IMAGE_FOLDERS[number % len(IMAGE_FOLDERS)]}/{number:06d}.jpg"


def _write_images(pool: Executor, folder: Path, seed: int, images: int, size: int) -> None:
    for name in IMAGE_FOLDERS:
        (folder / name).mkdir(parents=True)
    jobs = ((folder, seed, range(images)[i : i + IMAGE_BATCH], size) for i in range(0, images, IMAGE_BATCH))
    with tqdm(total=images, desc="images", unit="image") as bar:
        deque(_in_order(pool, _write_image_batch, jobs, bar), maxlen=0)


def _write_image_batch(folder: Path, seed: int, numbers: range, size: int) -> Drawn:
    for number in numbers:
        rng = np.random.default_rng([seed, 0, number])
        _picture(rng, size).save(folder / _image_path(number), quality=85)
    return len(numbers), b""


def _picture(rng: np.random.Generator, size: int) -> Image.Image:
    """A landscape of smoothed noise with shapes in it and the grain of a photograph over it."""
    aspect = rng.choice([1, 4 / 3, 3 / 2, 16 / 9]) ** rng.choice([-0.5, 0.5])
    area = size * rng.uniform(0.85, 1.25)
    box = (round(area * aspect), round(area / aspect))
    picture = _noise(rng, box, 90)
    for cell, strength in ((40, 0.4), (12, 0.25)):
        picture = Image.blend(picture, _noise(rng, box, cell), strength)
    _draw_shapes(rng, ImageDraw.Draw(picture), box)
    picture = picture.filter(ImageFilter.GaussianBlur(0.7))
    return Image.blend(picture, _noise(rng, box, 2), rng.uniform(0.1, 0.22))


def _noise(rng: np.random.Generator, box: tuple[int, int], cell: int) -> Image.Image:
    """Random colours, one to a cell of so many pixels, smoothed to fill the box."""
    width, height = (side // cell + 2 for side in box)
    grid = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(box, Image.Resampling.BICUBIC)


def _draw_shapes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: tuple[int, int]) -> None:
    for _ in range(rng.integers(4, 16)):
        x, y = (float(rng.uniform(0, side)) for side in box)
        width, height = (float(rng.uniform(0.03, 0.35)) * side for side in box)
        color = tuple(rng.integers(256, size=3).tolist())
        (draw.ellipse, draw.rectangle)[rng.integers(2)]((x, y, x + width, y + height), color)


if __name__ == "__main__":
    sys.exit(main())
