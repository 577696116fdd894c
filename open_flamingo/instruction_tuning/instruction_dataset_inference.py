"""Answer the records of instruction datasets and score the answers against the targets; see `--help`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from instruction_dataset.records import image_tag, split_images, write_json
from open_flamingo.instruction_tuning.checkpoint import split_paths
from open_flamingo.instruction_tuning.command import flag, parse, run
from open_flamingo.instruction_tuning.config import Template, TrainedConfig
from open_flamingo.instruction_tuning.data.conversation import Conversation
from open_flamingo.instruction_tuning.data.formats import Dataset, load_datasets
from open_flamingo.instruction_tuning.data.mixture import SamplingMode, draw_epoch, sample_counts
from open_flamingo.instruction_tuning.data.prompts import ASSISTANT, NEXT_TURN, escape, format_prompt
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.instruction_tuning.metrics import Scores, markdown_table, score
from open_flamingo.instruction_tuning.tracking import log_to_terminal
from open_flamingo.src.factory import MEDIA_TOKEN

logger = logging.getLogger("open_flamingo.inference")


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """The data."""

    instruction_path: Path = flag("a data file, or a config that names several (both JSON)")
    img_dir: str | None = flag("folder of the images; not given: as the config says", None)
    instruction_prompt_template: Template | None = flag(
        "how an instruction becomes a prompt; not given: as in training",
        None,
        aliases=["--instruction_prompt_templete"],
    )
    dataset_sampling_mode: SamplingMode = flag("how --num_samples are shared out", "ratio")
    num_samples: int = flag("records to answer, over all datasets; -1: all", 1)
    max_length: int = flag("tokens of a prompt, at most", 1024)
    results_dir: Path = flag("where results are written", Path("predictions"))


@dataclass(frozen=True, kw_only=True)
class GenerationFlags:
    """Generation."""

    batch_size: int = flag("records answered together", 16)
    max_new_token: int = flag("tokens to generate, at most", 128)
    num_beams: int = flag("beams", 1)
    do_sample: bool = flag("sample, instead of taking the likeliest", True)
    temperature: float = flag("of sampling", 1.0)
    top_k: int = flag("sample among the k likeliest tokens", 20)
    top_p: float = flag("sample among the likeliest tokens that make up this probability", 1.0)
    no_repeat_ngram_size: int = flag("never repeat so many tokens in a row; 0: no limit", 3)
    length_penalty: float = flag("above 0 favours long answers, with beams", 1.0)
    seed: int = flag("of the choice of records and of sampling", 42)

    def settings(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_token,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "length_penalty": self.length_penalty if self.num_beams > 1 else None,
            **(sampling if self.do_sample else {}),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Answer, write and score as the flags say; see `--help`."""
    parts = [TrainedConfig, DataFlags, GenerationFlags]
    model, data, generation = parse("Answer instruction datasets and score the answers.", parts, argv)
    log_to_terminal(is_main=True)
    datasets = load_datasets(data.instruction_path)
    if data.img_dir is not None:
        datasets = [replace(dataset, img_dir=data.img_dir) for dataset in datasets]
    inferencer = Inferencer(
        model.checkpoint_paths,
        model.lm_path,
        model.tuning_config,
        model.vision_encoder_path,
        model.vision_encoder_pretrained,
        model.cross_attn_every_n_layers,
        model.v1,
        tokenizer_path=model.tokenizer_path,
        template=data.instruction_prompt_template,
        precision=model.precision,
    )
    torch.manual_seed(generation.seed)
    checkpoint = split_paths(model.checkpoint_paths)[-1]
    folder = data.results_dir / checkpoint.stem / f"{data.instruction_path.stem}_{data.num_samples}"
    scores = {}
    for dataset, chosen in choose(datasets, data.num_samples, data.dataset_sampling_mode, generation.seed):
        results = answer_dataset(inferencer, dataset, chosen, data.max_length, generation)
        write_json(folder / f"{dataset.name}.json", results)
        scores[dataset.name] = score([r["output"] for r in results], [r["target"] for r in results])
    report(folder, scores)
    return 0


def choose(datasets: list[Dataset], total: int, mode: SamplingMode, seed: int) -> list[tuple[Dataset, list[int]]]:
    """The records to answer, in the order of each dataset; datasets without any are left out."""
    sizes = [len(dataset.records) for dataset in datasets]
    counts = sizes if total < 0 else sample_counts(sizes, [dataset.ratio for dataset in datasets], mode, total)
    pool = draw_epoch(sizes, counts, seed, epoch=0)
    chosen = [(dataset, sorted(r for d, r in pool if d == i)) for i, dataset in enumerate(datasets)]
    return [(dataset, records) for dataset, records in chosen if records]


class Prompt(NamedTuple):
    """What the model is asked: ids, and the path of each image."""

    ids: list[int]
    images: list[str]


def answer_dataset(
    inferencer: Inferencer, dataset: Dataset, chosen: list[int], max_length: int, generation: GenerationFlags
) -> list[dict[str, str]]:
    """The results of one dataset, in the order of its records; prompts of like length are answered together."""
    prompts = {i: _prompt(inferencer, dataset, i, max_length) for i in set(chosen)}
    by_length = sorted(prompts, key=lambda i: len(prompts[i].ids))
    answers: dict[int, str] = {}
    with tqdm(total=len(by_length), desc=dataset.name, unit="record") as bar:
        for start in range(0, len(by_length), generation.batch_size):
            batch = by_length[start : start + generation.batch_size]
            images = [dataset.image_path(path) for i in batch for path in prompts[i].images]
            responses = inferencer.answer([prompts[i].ids for i in batch], images, **generation.settings())
            answers.update(zip(batch, responses))
            bar.update(len(batch))
    return [_result(inferencer, dataset, i, answers[i]) for i in chosen]


def _prompt(inferencer: Inferencer, dataset: Dataset, index: int, max_length: int) -> Prompt:
    """What stands before a record's last answer."""
    try:
        *history, last = inferencer.turns.turns(dataset.records[index], first=True)
    except ValueError as error:
        raise ValueError(f"{dataset.where(index)}: {error}") from error
    before = Conversation()
    before.extend(history)
    prompt = Prompt([*before.ids, *last.prompt], [*before.images, *last.images])
    if len(prompt.ids) > max_length:
        raise ValueError(
            f"{dataset.where(index)}: its prompt has {len(prompt.ids)} tokens, more than --max_length {max_length}"
        )
    return prompt


def _result(inferencer: Inferencer, dataset: Dataset, index: int, answer: str) -> dict[str, str]:
    """One row of the results file; image paths are made whole, earlier turns stand before the last."""
    turns = dataset.records[index].turns
    dialogue = NEXT_TURN.join(f"{text}{ASSISTANT}{output}" for text, output in turns[:-1])
    text = (dialogue + NEXT_TURN if dialogue else "") + turns[-1][0]
    pieces, paths = split_images(text)
    tags = [image_tag(str(dataset.image_path(path))) for path in paths]
    return {
        "input": pieces[0] + "".join(tag + piece for tag, piece in zip(tags, pieces[1:])),
        "output": answer,
        "target": turns[-1][1],
        "prompt": format_prompt(MEDIA_TOKEN.join(map(escape, pieces)), inferencer.template),
    }


def report(folder: Path, scores: dict[str, Scores]) -> None:
    """Write `summary.md` beside the results, and show it."""
    table = markdown_table(scores)
    (folder / "summary.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    logger.info("results in %s", folder)


if __name__ == "__main__":
    run(main)
