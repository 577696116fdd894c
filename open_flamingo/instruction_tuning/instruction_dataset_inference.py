"""Answer the records of instruction datasets and score the answers against the targets; see `--help`.

Top to bottom: main > answer > the batches of this rank (answering.py), written as they come (results.py) > finish.
"""

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tqdm import tqdm

from instruction_dataset.dataset_config import Source, unconfigured
from instruction_dataset.reading import NoRecordsError
from instruction_dataset.records import write_json, write_whole
from open_flamingo.instruction_tuning.answering import Answerer, Item, Plan, Row, failure
from open_flamingo.instruction_tuning.build import files_of
from open_flamingo.instruction_tuning.checkpoint import split_paths
from open_flamingo.instruction_tuning.command import flag, parse, run
from open_flamingo.instruction_tuning.config import Template, TrainedConfig
from open_flamingo.instruction_tuning.data.formats import Dataset, named_sources, open_dataset
from open_flamingo.instruction_tuning.data.mixture import SamplingMode, draw_epoch, sample_counts
from open_flamingo.instruction_tuning.distributed import Ranks, joined
from open_flamingo.instruction_tuning.generation import Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.instruction_tuning.metrics import Metric, load_metrics, markdown_table, score
from open_flamingo.instruction_tuning.results import Part, held_alone, read_parts, stamp, start_parts
from open_flamingo.instruction_tuning.summary_html import write_html
from open_flamingo.instruction_tuning.tracking import log_to_terminal

logger = logging.getLogger("open_flamingo.inference")

INTERRUPTED = 130
PATIENCE = timedelta(days=30)
"""How long a rank that has done its share waits for the others."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """The data."""

    instruction_path: Path = flag("a data file, a folder of its shards, or a config that names several")
    img_dir: str | None = flag("folder of the images; not given: as the config says", None)
    instruction_prompt_template: Template | None = flag(
        "how an instruction becomes a prompt; not given: as in training",
        None,
        aliases=["--instruction_prompt_templete"],
    )
    dataset_sampling_mode: SamplingMode = flag("how --num_samples are shared out", "ratio")
    num_samples: int = flag("records to answer, over all datasets; -1: all", 1)
    max_length: int = flag("tokens of a prompt, at most; a longer one is not answered, and counted", 1024)
    results_dir: Path = flag("where results are written", Path("predictions"))
    metrics: str | None = flag(
        "functions of (prediction, target) that score as well, separated by commas: module:function, file.py:function",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class GenerationFlags:
    """Generation."""

    batch_size: int = flag("records answered together, at most; fewer where memory is too small", 16)
    max_batch_tokens: int = flag(
        "tokens of a batch, at most: its records times the longest prompt and --max_new_token; 0: no limit", 0
    )
    max_new_token: int = flag("tokens to generate, at most", 128)
    num_beams: int = flag("beams", 1)
    do_sample: bool = flag("sample, instead of taking the likeliest", True)
    temperature: float = flag("of sampling", 1.0)
    top_k: int = flag("sample among the k likeliest tokens; 0: among all", 20)
    top_p: float = flag("sample among the likeliest tokens that make up this probability", 1.0)
    no_repeat_ngram_size: int = flag("never repeat so many tokens in a row; 0: no limit", 3)
    length_penalty: float = flag("above 0 favours long answers, with beams", 1.0)
    seed: int = flag("of the choice of records and of sampling", 42)
    compile: bool = flag("compile the decoder layers by torch.compile: minutes at the start, faster batches", False)

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "max_batch_tokens": 0, "max_new_token": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        self.settings()

    def settings(self) -> Settings:
        """How the answers are made."""
        return Settings(
            max_new_tokens=self.max_new_token,
            num_beams=self.num_beams,
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            length_penalty=self.length_penalty,
        )


class Flags(NamedTuple):
    """What the command line says."""

    model: TrainedConfig
    data: DataFlags
    generation: GenerationFlags

    @property
    def folder(self) -> Path:
        """Where the results go."""
        checkpoint = _name(split_paths(str(self.model.checkpoint_paths))[-1])
        return self.data.results_dir / checkpoint / f"{_name(self.data.instruction_path)}_{self.data.num_samples}"

    @property
    def parts(self) -> Path:
        """Where answers are kept until all are there."""
        return self.folder / "parts"


def _name(path: Path) -> str:
    """What results are filed by; a dot in the name of a folder begins no suffix."""
    return path.name if path.is_dir() else path.stem


class Empty(NamedTuple):
    """A dataset without records."""

    name: str
    why: str


class Chosen(NamedTuple):
    """A dataset, and its records to answer; one that is drawn several times comes several times."""

    dataset: Dataset
    records: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Answer, write and score as the flags say; see `--help`."""
    parts = [TrainedConfig, DataFlags, GenerationFlags]
    flags = Flags(*parse("Answer instruction datasets and score the answers.", parts, argv))
    metrics = load_metrics([name.strip() for name in (flags.data.metrics or "").split(",") if name.strip()])
    try:
        with joined() as ranks:
            log_to_terminal(is_main=ranks.is_main)
            return 1 if answer(flags, metrics, ranks) else 0
    except KeyboardInterrupt:
        logger.info("interrupted: the answers so far are kept, and the same command goes on from there")
        return INTERRUPTED


def answer(flags: Flags, metrics: Mapping[str, Metric], ranks: Ranks) -> int:
    """Answer all records with the other ranks, and on the main rank write the results; the records that failed."""
    opened = open_datasets(flags.data)
    with held_alone(flags.folder) if ranks.is_main else nullcontext():
        return answer_all(flags, opened, metrics, ranks)


def answer_all(flags: Flags, opened: Sequence[Dataset | Empty], metrics: Mapping[str, Metric], ranks: Ranks) -> int:
    """As `answer`, of opened datasets."""
    datasets = [dataset for dataset in opened if isinstance(dataset, Dataset)]
    chosen = choose(datasets, flags.data.num_samples, flags.data.dataset_sampling_mode, flags.generation.seed)
    if ranks.is_main:
        for empty in opened:
            if isinstance(empty, Empty):
                logger.warning("dataset %s has nothing to answer: %s", empty.name, empty.why)
        start_parts(flags.parts, provenance(flags, datasets))
    # of all ranks, and before any work: what they wait by at the end must bear the slowest of them
    waiting = dist.new_group(timeout=PATIENCE, backend="gloo") if ranks.world_size > 1 else None
    answerer = make_answerer(flags, [dataset for dataset, _ in chosen], ranks)
    items = [Item(number, record) for number, (_, records) in enumerate(chosen) for record in sorted(set(records))]
    plan = answerer.plan(items, flags.generation.batch_size, flags.generation.max_batch_tokens)
    answer_share(answerer, plan, flags.parts, ranks)
    if isinstance(waiting, dist.ProcessGroup):
        dist.barrier(waiting)
    if not ranks.is_main:
        return 0
    answered = read_parts(flags.parts) | plan.refused
    if missing := sum(item not in answered for item in items):
        raise ValueError(f"{missing} answers are not in {flags.parts}: name a --results_dir that all ranks share")
    rows = {dataset.name: [answered[Item(i, r)] for r in records] for i, (dataset, records) in enumerate(chosen)}
    rows |= {empty.name: [failure(empty.why)] for empty in opened if isinstance(empty, Empty)}
    return finish(flags, {dataset.name: rows[dataset.name] for dataset in opened if dataset.name in rows}, metrics)


def open_datasets(data: DataFlags) -> list[Dataset | Empty]:
    """The datasets that the flags name; one without records is no reason not to answer the others."""
    try:
        sources = named_sources(data.instruction_path)
    except NoRecordsError as error:
        return [Empty(unconfigured(data.instruction_path).name, str(error))]
    if data.img_dir is not None:
        sources = [replace(source, img_dir=data.img_dir) for source in sources]
    return [_open(source) for source in sources]


def _open(source: Source) -> Dataset | Empty:
    try:
        return open_dataset(source)
    except NoRecordsError as error:
        return Empty(source.name, str(error))


def choose(datasets: list[Dataset], total: int, mode: SamplingMode, seed: int) -> list[Chosen]:
    """The records to answer, in the order of each dataset; datasets without any are left out."""
    if not datasets:
        return []
    sizes = [len(dataset.records) for dataset in datasets]
    counts = sizes if total < 0 else sample_counts(sizes, [dataset.ratio for dataset in datasets], mode, total)
    pool = draw_epoch(sizes, counts, seed, epoch=0)
    chosen = [Chosen(dataset, sorted(r for d, r in pool if d == i)) for i, dataset in enumerate(datasets)]
    return [share for share in chosen if share.records]


def provenance(flags: Flags, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """All that answers are made from, by name: the flags, the files of the model and the data."""
    values = {name: value for part in flags for name, value in asdict(part).items()}
    for name in ("results_dir", "metrics"):  # these are for when all is answered
        del values[name]
    return {
        **{f"--{name}": value for name, value in values.items()},
        **{what: [stamp(path) for path in paths] for what, paths in files_of(flags.model).items()},
        "data": [(dataset.name, dataset.records.key, dataset.img_dir, dataset.ratio) for dataset in datasets],
    }


def make_answerer(flags: Flags, datasets: Sequence[Dataset], ranks: Ranks) -> Answerer:
    """The model, on the device of this rank."""
    model, data, generation = flags
    torch.manual_seed(generation.seed)  # of weights that no checkpoint holds
    inferencer = Inferencer(
        model.checkpoint_paths,
        model.lm_path,
        model.tuning_config,
        model.vision_encoder_path,
        model.vision_encoder_pretrained,
        model.cross_attn_every_n_layers,
        model.v1,
        tokenizer_path=model.tokenizer_path,
        quick_gelu=model.quick_gelu,
        template=data.instruction_prompt_template,
        device=ranks.device,
        precision=model.precision,
        compile=generation.compile,
        conversations=0,
        images_held=0,  # so that a batch comes out the same, whatever was answered before it
    )
    return Answerer(inferencer, datasets, generation.settings(), generation.seed, data.max_length)


def answer_share(answerer: Answerer, plan: Plan, parts: Path, ranks: Ranks) -> None:
    """Answer this rank's share of the batches that no earlier run has answered, and write each as it comes."""
    # the main rank looks for all, since what others write from here on must change nobody's share
    done = ranks.gather({*read_parts(parts)} if ranks.is_main else None)[0]
    rest = [batch for batch in plan.batches if not done.issuperset(batch)]
    total, left = (sum(map(len, batches)) for batches in (plan.batches, rest))
    if left < total:
        logger.info("continuing: %d of %d records are answered", total - left, total)
    share = rest[ranks.rank :: ranks.world_size]
    name = "answering" if ranks.world_size == 1 else f"rank 0 of {ranks.world_size}"
    bar = tqdm(total=sum(map(len, share)), desc=name, unit="record", disable=not ranks.is_main)
    with bar, Part(parts, ranks.rank) as part:
        for batch in share:
            part.add(batch, answerer.rows(batch))
            bar.update(len(batch))


def finish(flags: Flags, rows: Mapping[str, list[Row]], metrics: Mapping[str, Metric]) -> int:
    """Write the results of each dataset, then the summaries, and show them; the records that failed."""
    folder = flags.folder
    for name, its_rows in rows.items():
        write_json(folder / f"{name}.json", its_rows)
    scores = {name: score(its_rows, metrics) for name, its_rows in rows.items()}
    table = markdown_table(scores)
    write_whole(folder / "summary.md", table)
    write_html(folder / "summary.html", dict(rows), scores, metrics)
    shutil.rmtree(flags.parts)
    sys.stdout.write(table)
    logger.info("results in %s", folder)
    failed = sum("error" in row for its_rows in rows.values() for row in its_rows)
    if failed:
        total = sum(map(len, rows.values()))
        logger.error(
            "%d of %d records could not be answered: their rows in %s say why ('error')", failed, total, folder
        )
    return failed


if __name__ == "__main__":
    run(main)
