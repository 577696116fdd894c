"""How fast we train, and in how much memory: against Idefics, a bare language model, and the machine.

    python benchmarks/train.py --json train.json --plot train.svg      everything, medians of 5
    python benchmarks/train.py --cases a --precisions bf16 --repeats 2 --measure time

Prints tables of tokens per second, of ratios, and of memory. All models are random; their sizes and the cases a (2 of 8
images per sample), b (8 of 8) and c (16 images, 2048 tokens) stand in benchmarks/train_cases.py. In each repeat every contender
takes one step after the other, so that a machine that slows down slows all of them; a ratio is the median over the repeats.

memory: what is resident at most during two steps, above what was before them (weights and batch were there, gradients and
the optimizer's state were not). Each measurement has a process of its own.
"""

import argparse
import json
import logging
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.nn.functional as F
import transformers
from rivals import CONTENDERS, Step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm
from train_cases import CASES, SIZES, Case

from open_flamingo.instruction_tuning.config import Precision
from open_flamingo.src.loss import supervised_loss

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
WITH_MEMORY = ("ours", "Idefics", "Idefics, real images only", "bare LM")
PEAK = "matmul"
PEAK_WIDTH = 2048
POSITIONS = 4096
VOCABULARIES = (8192, 32768, 131072)
MEBI = 2**20

Times = dict[str, list[float]]


def main() -> None:
    """Measure, print the tables, and write what was asked for."""
    args = _parser().parse_args()
    logging.disable(logging.WARNING)  # every tower here has random weights, and says so
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"machine": machine(), "repeats": args.repeats, "sizes": asdict(SIZES), "steps": {}}
    for case in args.cases:
        for precision in args.precisions:
            row: dict[str, Any] = {}
            report["steps"][f"{case}, {precision}"] = row
            if "time" in args.measure:
                row |= speed(case, precision, args.repeats)
            if "memory" in args.measure:
                row["memory, MiB"] = {name: isolated(memory_of_steps, name, case, precision) for name in WITH_MEMORY}
    if "loss" in args.measure:
        report["loss, MiB"] = {
            name: {size: isolated(memory_of_loss, name, size) for size in VOCABULARIES} for name in LOSSES
        }
    for table in ("tokens/s", "ratios", "memory, MiB"):
        print_table(table, {name: row[table] for name, row in report["steps"].items() if table in row})
    print_table(f"head and loss at {POSITIONS} positions, MiB", report.get("loss, MiB", {}))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        draw(report["steps"], args.plot)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    names = [line.split(":")[1].strip() for line in cpu_info() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_info() -> list[str]:
    """Linux's description of the processors; elsewhere nothing."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def speed(name: str, precision: Precision, repeats: int) -> dict[str, Any]:
    """Medians, rates and ratios of one case."""
    case = CASES[name]
    steps = {contender: seeded(make, case, precision) for contender, make in CONTENDERS.items()}
    steps[PEAK] = matmul(precision)
    times = interleaved(steps, repeats, f"{name}, {precision}")
    medians = {contender: statistics.median(seconds) for contender, seconds in times.items()}
    peak = 2 * PEAK_WIDTH**3 / medians[PEAK]
    flops = count_flops(steps["ours"])
    trained = ("ours", "ours, compiled", "ours, padded", "Idefics", "Idefics, real images only", "bare LM")
    return {
        "seconds": medians,
        "tokens/s": {contender: case.batch * case.tokens / medians[contender] for contender in trained},
        "ratios": ratios(times) | {"share of the matmul peak": flops / medians["ours"] / peak},
        "GFLOP of a step": flops / 1e9,
        "matmul peak, GFLOP/s": peak / 1e9,
    }


def seeded(make: Callable[[Case, Precision], Step], case: Case, precision: Precision) -> Step:
    """A contender whose weights and batch are the same every time."""
    torch.manual_seed(0)
    return make(case, precision)


def matmul(precision: Precision) -> Step:
    """A large square matrix product: what the machine can do."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = torch.randn(2, PEAK_WIDTH, PEAK_WIDTH, dtype=dtype)
    return lambda: a @ b


def interleaved(steps: dict[str, Step], repeats: int, what: str) -> Times:
    """Seconds of each step: all of them in turn, as often as asked, after a first round that does not count."""
    times: Times = {name: [] for name in steps}
    names = list(steps)
    with tqdm(total=len(steps) * (repeats + 1), desc=what) as bar:
        for repeat in range(repeats + 1):
            start = repeat % len(names)  # what comes first has the caches that the last one left
            for name in names[start:] + names[:start]:
                started = time.perf_counter()
                steps[name]()
                times[name].append(time.perf_counter() - started)
                bar.update()
    return {name: seconds[1:] for name, seconds in times.items()}


def ratios(times: Times) -> dict[str, float]:
    """What the goals are about, each the median over the repeats."""
    floor = ("bare LM", "tower", "products of the blocks")
    return {
        "speed / Idefics": ratio(times, ["Idefics"], ["ours"]),
        "speed / Idefics, real images only": ratio(times, ["Idefics, real images only"], ["ours"]),
        "compiled, speed / Idefics": ratio(times, ["Idefics"], ["ours, compiled"]),
        "compiled, speed / Idefics, real images only": ratio(times, ["Idefics, real images only"], ["ours, compiled"]),
        "time / bare LM, tower, products of the blocks": ratio(times, ["ours"], floor),
        "and products of the resampler": ratio(times, ["ours"], [*floor, "products of the resampler"]),
        "time with twice the slots": ratio(times, ["ours, twice the slots"], ["ours, padded"]),
    }


def ratio(times: Times, above: list[str], below: tuple[str, ...] | list[str]) -> float:
    """The median over the repeats of the summed times `above` over those `below`."""
    sums = [[sum(repeat) for repeat in zip(*(times[name] for name in names), strict=True)] for names in (above, below)]
    return statistics.median(a / b for a, b in zip(*sums, strict=True))


def count_flops(step: Step) -> int:
    """Floating-point operations of the matrix products and the attention of a step."""
    aten: Any = torch.ops.aten
    with FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        },
    ) as counter:
        step()
    return counter.get_total_flops()


def attention_flops(
    q: Any, k: Any, v: Any, _dropout: float = 0.0, is_causal: bool = False, *_args: Any, **_kwargs: Any
) -> int:
    """Of the CPU's fused attention, which torch does not count; a causal one does half."""
    return sdpa_flop_count(q, k, v) // (2 if is_causal else 1)


def attention_backward_flops(
    grad: Any, q: Any, k: Any, v: Any, _out: Any, _sums: Any, _dropout: float, is_causal: bool, **_kwargs: Any
) -> int:
    """Of its backward pass."""
    return sdpa_backward_flop_count(grad, q, k, v) // (2 if is_causal else 1)


def isolated(measure: Callable[..., float], *args: Any) -> float:
    """`measure(threads, *args)` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, torch.get_num_threads(), *args).result()


def memory_of_steps(threads: int, name: str, case: str, precision: Precision) -> float:
    """MiB that two steps add at their peak."""
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    step = seeded(CONTENDERS[name], CASES[case], precision)
    return peak_of(lambda: (step(), step()))


def memory_of_loss(threads: int, name: str, vocabulary: int) -> float:
    """MiB that output head and loss add at their peak, forward and backward, with the head's weight there already."""
    torch.set_num_threads(threads)
    head = nn.Linear(SIZES.width, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(POSITIONS, SIZES.width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (POSITIONS,))
    return peak_of(lambda: LOSSES[name](hidden, head, targets).backward())


def plain_loss(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """Cross-entropy with all logits at once."""
    return F.cross_entropy(head(hidden), targets, reduction="sum")


def our_loss(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The loss of our training step."""
    return supervised_loss(hidden, head.weight, None, targets).total


LOSSES: dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]] = {"ours": our_loss, "plain": plain_loss}


def peak_of(run: Step) -> float:
    """MiB by which resident memory rises at most while `run` lasts."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here: proc(5)
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / MEBI


def status(key: str) -> int:
    """A size in the status of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def print_table(title: str, columns: dict[str, dict[Any, float]]) -> None:
    """A Markdown table, one column per case."""
    if not columns:
        return
    sys.stdout.write(f"\n| {title} | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}\n")
    for name in next(iter(columns.values())):
        cells = [f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.3g}" for row in columns.values()]
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Tokens per second of each contender, case by case."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    rates = {name: row["tokens/s"] for name, row in rows.items() if "tokens/s" in row}
    if not rates:
        raise ValueError("--plot draws tokens per second: let --measure hold 'time'")
    names = list(next(iter(rates.values())))
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for i, name in enumerate(names):
        places = [place + (i - len(names) / 2) / (len(names) + 1) for place in range(len(rates))]
        axes.bar(places, [rate[name] for rate in rates.values()], 1 / (len(names) + 1), align="edge", label=name)
    axes.set_xticks(range(len(rates)), list(rates))
    axes.set_ylabel("tokens/s")
    figure.legend(loc="outside right upper")
    figure.savefig(path, metadata={"Date": None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="batches to step on; all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="both")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps of each contender, after one that is not; 5"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch; 2")
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=["time", "memory", "loss"],
        default=["time", "memory", "loss"],
        help="time and memory of steps, memory of the loss against the vocabulary; all (memory needs Linux)",
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--plot", type=Path, help="draw tokens per second to this file (SVG)")
    return parser


if __name__ == "__main__":
    main()
