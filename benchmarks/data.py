"""What instruction data costs at scale: `python benchmarks/data.py --parts runs/quickstart/parts --folder /tmp/data`.

Prints, for each number of records (synthetic, made where they are not there yet): time and rate of the first reading, time
of a warm start, memory that a rank adds, packed tokens per second, decoded images per second against the limit, and the
share of padding of both packing modes; and draws memory against records. Each size runs in a process of its own. The
parts are those of `make quickstart`: its tokenizer, and its model for the tokens per second of a training step.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from PIL import Image, ImageOps
from transformers import AutoTokenizer

from instruction_dataset import synthesize
from instruction_dataset.store import CACHE_VARIABLE
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import load_datasets
from open_flamingo.instruction_tuning.data.loader import Epoch, InstructionData
from open_flamingo.instruction_tuning.data.packing import PACKING
from open_flamingo.src.factory import MEDIA_TOKEN, add_special_tokens, create_model_and_transforms
from open_flamingo.src.vision import create_vision_encoder

TOWER = "ViT-L-14-336"
LIMITS: dict[str, Any] = {"max_length": 2048, "max_img": 16, "multiturn_augmentation": 32, "seed": 0}
SAMPLES, PICTURES = 2000, 300
QUICKSTART = {"batch": 16, "length": 20, "images": 19, "steps": 5}
"""A step of `make quickstart`: short questions about digits."""


def main() -> None:
    """Print the tables and draw the plot."""
    args = _parser().parse_args()
    if args.measure is not None:
        sys.stdout.write(json.dumps(measure(args.folder / str(args.measure), args.parts)) + "\n")
        return
    rows = {records: in_own_process(records, args) for records in args.records}
    sys.stdout.write(f"| | {' | '.join(f'{records:,} records' for records in rows)} |\n|{' --- |' * (1 + len(rows))}\n")
    for name in next(iter(rows.values())):
        cells = [f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.3g}" for row in rows.values()]
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
    sys.stdout.write(f"a training step of the quickstart: {training_tokens_per_second(args.parts):,.0f} tokens/s\n")
    draw(rows, args.folder / "memory.svg")


def in_own_process(records: int, args: argparse.Namespace) -> dict[str, float]:
    """The measurements of one size: the first start of a process, and a second one."""
    folder: Path = args.folder / str(records)
    if not (folder / "config.json").exists():
        synthesize.main(["--records", str(records), "--output", str(folder), "--images", "2000"])
    cache = folder.with_suffix(".cache")
    shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {CACHE_VARIABLE: str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--folder", args.folder, "--parts", args.parts, "--measure", str(records)]
    starts = [subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True) for _ in range(2)]
    cold, warm = (json.loads(start.stdout.splitlines()[-1]) for start in starts)
    size = sum(file.stat().st_size for file in folder.glob("*.json*")) / 1e6
    return {
        "source, MB": size,
        "first reading, s": cold["records, s"],
        "first reading, MB/s": size / cold["records, s"],
        "first tokenizing, s": cold["tokens, s"],
        "warm start, s": warm.pop("records, s") + warm.pop("tokens, s") + warm.pop("first sample, s"),
    } | warm


def measure(folder: Path, parts: Path) -> dict[str, float]:
    """A start of this process with the data in `folder`, and what one worker makes of it."""
    turns = turn_tokenizer(parts)
    _, transform = create_vision_encoder(TOWER, "none")
    before = memory()
    started = time.perf_counter()
    datasets = load_datasets(folder / "config.json")
    loaded = time.perf_counter()
    data = InstructionData(datasets, turns, transform, **LIMITS)
    tokenized = time.perf_counter()
    data.check()
    epoch = data.epoch(0, -1, "ratio")
    epoch.conversation(0)
    results = {
        "records, s": loaded - started,
        "tokens, s": tokenized - loaded,
        "first sample, s": time.perf_counter() - tokenized,
        "memory added: at start, MiB": memory() - before,
    }
    return results | packing(epoch) | {"memory added: after use, MiB": memory() - before} | pictures(epoch)


def packing(epoch: Epoch) -> dict[str, float]:
    """Tokens per second of samples without their images, and how full they are."""
    results = {}
    for mode in PACKING:
        epoch.data.packing = mode
        started = time.perf_counter()
        lengths = [len(epoch.conversation(i).ids) for i in range(SAMPLES)]
        results[f"packed tokens/s, {mode}"] = sum(lengths) / (time.perf_counter() - started)
        results[f"padding, {mode}, %"] = 100 - 100 * statistics.mean(lengths) / LIMITS["max_length"]
    return results


def pictures(epoch: Epoch) -> dict[str, float]:
    """Images per second on one core in whole samples, and against Pillow and the transform alone."""
    torch.set_num_threads(1)
    samples: list[int] = []
    images: list[str] = []
    while len(images) < PICTURES:
        images += dict.fromkeys(epoch.conversation(len(samples)).images)  # one that comes up twice is decoded once
        samples.append(len(samples))
    transform = epoch.data.transform
    limit = len(images) / median(lambda: [transform(plain(path, i % 2 == 0)) for i, path in enumerate(images)])
    ours = len(images) / median(lambda: [epoch[i] for i in samples])
    return {"images/s": ours, "images/s, share of the limit": ours / limit}


def plain(path: str, is_squared: bool) -> Image.Image:
    """An image as Pillow alone opens it; half of those that training sees are made square."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    return ImageOps.pad(image, (max(image.size), max(image.size))) if is_squared else image


def turn_tokenizer(parts: Path) -> TurnTokenizer:
    """The tokenizer of the quickstart."""
    tokenizer = AutoTokenizer.from_pretrained(parts / "lm")
    add_special_tokens(tokenizer)
    media_token_id: Any = tokenizer.convert_tokens_to_ids(MEDIA_TOKEN)
    return TurnTokenizer(tokenizer, media_token_id, "guanaco-no-prompt")


def training_tokens_per_second(parts: Path) -> float:
    """Tokens of forward and backward passes of the quickstart's model, bf16, by all threads."""
    model, _, _ = create_model_and_transforms(
        str(parts / "vision"), "none", str(parts / "lm"), cross_attn_every_n_layers=10, lm_dtype=torch.bfloat16
    )
    batch, length, images = QUICKSTART["batch"], QUICKSTART["length"], QUICKSTART["images"]
    ids = torch.randint(100, 1000, (batch, length))
    ids.view(-1)[: images * batch : batch] = model.media_token_id
    pixels = torch.randn(images, 1, 3, 224, 224)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(pixels, ids, labels=ids).loss.backward()

    step()
    return batch * length / median(step, QUICKSTART["steps"])


def draw(rows: dict[int, dict[str, Any]], path: Path) -> None:
    """Memory that a rank adds against records."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name in ("memory added: at start, MiB", "memory added: after use, MiB"):
        axes.plot(
            list(rows), [row[name] for row in rows.values()], marker="o", label=name.removeprefix("memory added: ")
        )
    axes.set(xscale="log", xlabel="records", ylabel="MiB that a rank adds", ylim=(0, None))
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    sys.stdout.write(f"{path}\n")


def memory() -> float:
    """Resident memory of this process, file pages included, MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Rss:"))) / 1024


def median(run: Callable[[], object], repeats: int = 3) -> float:
    """The median of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where data, caches and the plot are written")
    parser.add_argument("--parts", type=Path, required=True, help="the parts of `make quickstart`")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
