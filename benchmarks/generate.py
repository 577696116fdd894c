"""How fast we answer: against Idefics, a bare language model, and the weights that a token has to read.

    python benchmarks/generate.py --json generate.json --plot generate.svg      one prompt, medians of 3: 10 minutes
    python benchmarks/generate.py --prompts 1 8                                 everything, as much again several times
    python benchmarks/generate.py --images 0 1 --precisions fp32 --every 4 --beams 1 --repeats 1
    python benchmarks/generate.py --dataset runs/quickstart/checkpoint_0.pt runs/quickstart/digits/held_out.json

Prints tables of tokens per second of a whole call, of the time to the first token, of the time of each further one, and of
ratios. All models are random, of the sizes of benchmarks/train.py; their requests stand in benchmarks/generate_cases.py: 64
tokens of text with images at equal distances, answered with 64 tokens, whatever they say. Every request is answered by one
contender after the other, so that a machine that slows down slows all of them; a ratio is the median over the repeats.

weights: what one token reads, the language model's without its table of input embeddings, and of a gated block all but
`to_kv`, whose keys and values are there. "decoding / (bare LM x weights)" is our time of a further token over that of the
bare language model times (its weights and those of the blocks) / its weights.

--dataset measures something else: records per second of dataset inference, one by one and in batches of 8, greedily, and
fails where the two differ in a text.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from generate_cases import TOKENS, Case, Contender, cases, contenders, weights_ratio
from rivals import CPU
from tqdm import tqdm
from train import PRECISIONS, machine, print_table
from train_cases import SIZES
from transformers import StoppingCriteria, StoppingCriteriaList

from open_flamingo.instruction_tuning.answering import Answerer, Item
from open_flamingo.instruction_tuning.config import Precision
from open_flamingo.instruction_tuning.data.formats import load_datasets
from open_flamingo.instruction_tuning.generation import Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.instruction_tuning.precision import autocast

BATCH = 8
"""Records that --dataset answers together."""
ANSWER = Settings(max_new_tokens=8, no_repeat_ngram_size=3)
"""As the quickstart does."""


class Timing(NamedTuple):
    """One answer, in seconds."""

    whole: float
    first: float
    """Until there is a token: images and prompt."""

    @property
    def further(self) -> float:
        """Of each token after the first."""
        return (self.whole - self.first) / (TOKENS - 1)


Timings = dict[str, list[Timing]]
"""Of each contender, one for each repeat."""


def main() -> None:
    """Measure, print the tables, and write what was asked for."""
    args = _parser().parse_args()
    logging.disable(logging.WARNING)  # every tower here has random weights, and says so
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"machine": machine()}
    if args.dataset:
        report["dataset"] = dataset_speed(*args.dataset)
        print_table("dataset inference", {args.dataset[1]: report["dataset"]})
    else:
        report |= {"repeats": args.repeats, "sizes": asdict(SIZES)} | speeds(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def speeds(args: argparse.Namespace) -> dict[str, Any]:
    """All timings, and the tables of each precision, drawn where that was asked for."""
    todo = cases(args.prompts, args.images, args.beams)
    measured: dict[Precision, dict[Case, Timings]] = {}
    report: dict[str, Any] = {}
    for precision in args.precisions:
        rivals = contenders(args.every, precision)
        measured[precision] = interleaved(rivals, todo, args.repeats, precision)
        weights = {every: weights_ratio(rivals[f"ours, every {every}"], rivals["bare LM"]) for every in args.every}
        report[precision] = tables(measured[precision], weights)
        for title, columns in report[precision].items():
            print_table(f"{precision}: {title}", columns)
        report[precision]["timings"] = {
            str(case): {name: [timing._asdict() for timing in repeats] for name, repeats in of_case.items()}
            for case, of_case in measured[precision].items()
        }
    if args.plot:
        draw(measured, args.plot)
    return report


def interleaved(
    rivals: dict[str, Contender], todo: list[Case], repeats: int, precision: Precision
) -> dict[Case, Timings]:
    """Every case answered by every contender in turn, as often as asked, after a short first round that does not count."""
    timings: dict[Case, Timings] = {case: {name: [] for name in rivals} for case in todo}
    names = list(rivals)
    with tqdm(total=len(todo) * len(names) * (repeats + 1), desc=precision) as bar:
        for repeat in range(repeats + 1):
            for case in todo:
                start = repeat % len(names)  # what comes first has the caches that the last one left
                for name in names[start:] + names[:start]:
                    timing = answer(rivals[name], case, precision, TOKENS if repeat else 2)
                    if repeat:
                        timings[case][name].append(timing)
                    bar.update()
    return timings


class Clock(StoppingCriteria):
    """Notes when the first token was there, and stops nothing."""

    first: float | None = None

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_kwargs: Any) -> torch.Tensor:
        """False for every row (r,) of `input_ids` (r, t)."""
        self.first = self.first or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def answer(contender: Contender, case: Case, precision: Precision, tokens: int) -> Timing:
    """Answer a case with so many tokens."""
    inputs, clock = contender.inputs(case), Clock()
    with torch.inference_mode(), autocast(CPU, precision):
        started = time.perf_counter()
        ids = contender.model.generate(
            **inputs,
            max_new_tokens=tokens,
            num_beams=case.beams,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        ended = time.perf_counter()
    assert clock.first is not None
    assert ids.shape == (case.prompts, inputs["attention_mask"].shape[1] + tokens)
    return Timing(ended - started, clock.first - started)


def tables(timings: dict[Case, Timings], weights: dict[int, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians and ratios, by title, column and row."""
    read = {f"blocks every {every}": ratio for every, ratio in weights.items()}
    return {
        "tokens/s": table(timings, tokens_per_second),
        "time to first token, ms": table(timings, lambda _, time: 1000 * time.first),
        "a further token, ms": table(timings, lambda _, time: 1000 * time.further),
        "ratios": ratios(timings, weights),
        "a further token / with 1 image": growth(timings),
        "weights": {"of all read / of the language model": read},
    }


def table(timings: dict[Case, Timings], figure: Callable[[Case, Timing], float]) -> dict[str, dict[str, float]]:
    """The median over the repeats of a figure, by contender and case."""
    columns: dict[str, dict[str, float]] = {name: {} for name in next(iter(timings.values()))}
    for case, of_case in timings.items():
        for name, repeats in of_case.items():
            columns[name][str(case)] = statistics.median(figure(case, timing) for timing in repeats)
    return columns


def ratios(timings: dict[Case, Timings], weights: dict[int, float]) -> dict[str, dict[str, float]]:
    """What the goals are about, each the median over the repeats, by ratio and case."""
    columns: dict[str, dict[str, float]] = {}
    for every, ratio in weights.items():
        speeds = columns.setdefault(f"speed / Idefics, every {every}", {})
        costs = columns.setdefault(f"decoding / (bare LM x weights), every {every}", {})
        for case, of_case in timings.items():
            ours, idefics = of_case[f"ours, every {every}"], of_case[f"Idefics, every {every}"]
            speeds[str(case)] = median_ratio([t.whole for t in idefics], [t.whole for t in ours])
            costs[str(case)] = median_ratio([t.further for t in ours], [t.further * ratio for t in of_case["bare LM"]])
    return columns


def growth(timings: dict[Case, Timings]) -> dict[str, dict[str, float]]:
    """The time of a further token against that with one image, each the median over the repeats, by contender and case."""
    columns: dict[str, dict[str, float]] = {}
    for case in timings:
        one = case._replace(images=1)
        if case.images > 1 and one in timings:
            for name, repeats in timings[case].items():
                times = [[t.further for t in of_case] for of_case in (repeats, timings[one][name])]
                columns.setdefault(name, {})[str(case)] = median_ratio(*times)
    return columns


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the repeats."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def dataset_speed(checkpoint: str, data: str) -> dict[str, float]:
    """Records per second in batches and one by one, each with a model of its own that has seen none of the images."""
    datasets = load_datasets(Path(data))
    batched, single = (
        Answerer(Inferencer(checkpoint, conversations=0), datasets, ANSWER, seed=0, max_length=1024) for _ in range(2)
    )
    items = [Item(d, record) for d, dataset in enumerate(datasets) for record in range(len(dataset.records))]
    seconds = [0.0, 0.0]
    for batch in tqdm(batched.plan(items, BATCH, 0).batches, unit="batch"):
        begun = time.perf_counter()
        together = batched.rows(batch)
        between = time.perf_counter()
        alone = [row for item in batch for row in single.rows([item])]
        seconds = [seconds[0] + between - begun, seconds[1] + time.perf_counter() - between]
        if together != alone or any("error" in row for row in alone):
            raise ValueError(f"answered together: {together}; one by one: {alone}")
    rates = [len(items) / spent for spent in seconds]
    return {
        "records": len(items),
        f"records/s, {BATCH} together": rates[0],
        "records/s, one by one": rates[1],
        "ratio": rates[0] / rates[1],
    }


def draw(measured: dict[Precision, dict[Case, Timings]], path: Path) -> None:
    """Tokens per second of greedy answers against images, a panel for each precision and number of prompts."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    prompts = sorted({case.prompts for timings in measured.values() for case in timings})
    size = (5 * len(prompts), 1 + 3 * len(measured))
    figure, grid = plt.subplots(len(measured), len(prompts), figsize=size, squeeze=False, layout="constrained")
    for row, (precision, timings) in zip(grid, measured.items(), strict=True):
        for axes, count in zip(row, prompts, strict=True):
            greedy = [case for case in timings if case.beams == 1 and case.prompts == count]
            for name, rates in table({case: timings[case] for case in greedy}, tokens_per_second).items():
                axes.plot([str(case.images) for case in greedy], list(rates.values()), marker="o", label=name)
            axes.set(
                title=f"{precision}, prompts: {count}", xlabel="images per prompt", ylabel="tokens/s", ylim=(0, None)
            )
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None})


def tokens_per_second(case: Case, time: Timing) -> float:
    """Of all answers of a call, from its begin."""
    return case.prompts * TOKENS / time.whole


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", type=int, default=[1], help="prompts answered together, such as 1 8; 1")
    parser.add_argument("--images", nargs="+", type=int, default=[0, 1, 4, 16], help="images per prompt; 0 1 4 16")
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 3], help="beams, 1 is greedy; 1 3")
    parser.add_argument("--every", nargs="+", type=int, default=[4, 1], help="layers for each gated block; 4 1")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="both")
    parser.add_argument("--repeats", type=int, default=3, help="timed answers of each contender to each request; 3")
    parser.add_argument("--threads", type=int, default=2, help="of torch; 2")
    parser.add_argument(
        "--dataset", nargs=2, metavar=("CHECKPOINT", "DATA"), help="measure only the answers to this data, fp32"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--plot", type=Path, help="draw greedy tokens per second against images to this file (SVG)")
    return parser


if __name__ == "__main__":
    main()
