"""Command: `python -m instruction_dataset.digits --output DIR` writes scikit-learn's 1,797 handwritten digits as data.

Questions about one image or two, with the images and the configs. Split by image, so no held out image is ever trained
on; nothing is downloaded, so it serves as the small real dataset.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from instruction_dataset.command import ended
from instruction_dataset.records import Record, image_tag, parse_record, read_json_array, split_images, write_json

TRAIN_IMAGES = 1500
# dark ink on white paper, as a photo shows it: image towers tell such digits apart best
IMAGE_SIZE = 224
MARGIN = 2
DARKEST = 16
PAIRS = {"train": 3000, "held_out": 297}
RATIOS = {"which": 80, "larger": 12, "sum": 8}


def main(argv: list[str] | None = None) -> int:
    """Write the digits and say what they are; 0, or 1 after one line on stderr."""
    args = _parser().parse_args(argv)

    def work() -> int:
        try:
            train = write_digits(args.output, args.seed)
        except OSError as error:
            place = f"cannot write {error.filename or args.output}: {error.strerror}"
            raise ValueError(f"{place}; give --output a folder you may write to") from error
        for config in (train, train.with_name("held_out.json")):
            sys.stdout.write(_summary(config))
        return 0

    return ended(work, args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instruction_dataset.digits",
        description="Write handwritten digits as instruction data: which digit, the larger of two, the sum of two.",
        epilog="train.json and held_out.json in DIR are dataset configs. Needs scikit-learn; downloads nothing.",
    )
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


def write_digits(folder: Path, seed: int) -> Path:
    """Write images, datasets and configs of both splits under `folder`; the path of the training config.

    Raises ValueError where scikit-learn, which holds the digits, is not installed.
    """
    pixels, labels = _load()
    _write_images(folder, pixels)
    rng = random.Random(seed)
    order = list(range(len(labels)))
    rng.shuffle(order)
    for split, images in (("train", order[:TRAIN_IMAGES]), ("held_out", order[TRAIN_IMAGES:])):
        datasets = {
            "which": [_which(image, labels) for image in images],
            "larger": _pair_records(_larger, images, labels, PAIRS[split], rng),
            "sum": _pair_records(_sum, images, labels, PAIRS[split], rng),
        }
        _write_split(folder, split, datasets)
    return folder / "train.json"


def _load() -> tuple[np.ndarray, list[int]]:
    try:
        # imported here: the command's --help must work, and fast, without scikit-learn
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError("the digits come with scikit-learn; run `pip install scikit-learn`") from error
    digits = load_digits()
    return digits.images, digits.target.tolist()


def _write_images(folder: Path, pixels: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, ink in enumerate(tqdm(pixels, desc="images", unit="image")):
        grey = Image.fromarray((255 * (1 - np.pad(ink, MARGIN) / DARKEST)).round().astype(np.uint8))
        grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS).save(folder / _image_path(number))


def _image_path(number: int) -> str:
    return f"images/{number:04d}.png"


def _write_split(folder: Path, split: str, datasets: dict[str, list[Record]]) -> None:
    config = []
    for name, records in datasets.items():
        path = folder.resolve() / f"{name}_{split}.json"
        write_json(path, [asdict(record) for record in records])
        config.append(
            {
                "dataset_name": f"digits-{name}",
                "json_path": str(path),
                "img_dir": str(folder.resolve()),
                "ratio": RATIOS[name],
            }
        )
    write_json(folder / f"{split}.json", config)


def _which(image: int, labels: list[int]) -> Record:
    return Record(image_tag(_image_path(image)) + "Which digit is shown?", str(labels[image]))


def _larger(first: int, second: int, labels: list[int]) -> Record | None:
    """The larger of two digits; None for equal digits, where neither is."""
    if labels[first] == labels[second]:
        return None
    return Record(_pair(first, second) + "Which of the two is larger?", str(max(labels[first], labels[second])))


def _sum(first: int, second: int, labels: list[int]) -> Record | None:
    return Record(_pair(first, second) + "What is their sum?", str(labels[first] + labels[second]))


def _pair(first: int, second: int) -> str:
    return image_tag(_image_path(first)) + image_tag(_image_path(second))


def _pair_records(
    ask: Callable[[int, int, list[int]], Record | None],
    images: list[int],
    labels: list[int],
    count: int,
    rng: random.Random,
) -> list[Record]:
    """`count` different records over random ordered pairs of different images."""

    def draw() -> Iterator[Record]:
        seen: set[tuple[int, int]] = set()
        while True:
            first, second = rng.sample(images, 2)
            record = ask(first, second, labels)
            if record is not None and (first, second) not in seen:
                seen.add((first, second))
                yield record

    return list(islice(draw(), count))


if __name__ == "__main__":
    sys.exit(main())
