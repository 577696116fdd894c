"""`--dry_run`: what a training command would do, printed in place of doing it: parameters, memory, data, steps, mistakes.

The model is built on the meta device, from configurations and the tokenizer. Nothing is written but the data cache.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.build import build_model
from open_flamingo.instruction_tuning.checkpoint import load_payloads, read_checkpoints
from open_flamingo.instruction_tuning.config import Flags, ModelConfig, OptimConfig, Precision, RunConfig
from open_flamingo.instruction_tuning.data.batches import rank_share
from open_flamingo.instruction_tuning.data.conversation import Conversation, TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import Dataset, load_datasets
from open_flamingo.instruction_tuning.data.loader import Epoch, InstructionData
from open_flamingo.instruction_tuning.data.summary import mixture_table
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.memory import Memory, estimate, largest_batch
from open_flamingo.instruction_tuning.saving import checkpoints_of, continued_from, newest_checkpoint, refuse_incomplete
from open_flamingo.instruction_tuning.tracking import refuse_unwritable
from open_flamingo.instruction_tuning.trainer import make_trainer
from open_flamingo.instruction_tuning.tuning import TuningConfig, prepare_model_for_tuning, read_tuning_config
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.lora import is_lora, part_of
from open_flamingo.src.vision import NO_WEIGHTS
from open_flamingo.src.weights import ROWS

T = TypeVar("T")
DataOf = Callable[[list[Dataset], TurnTokenizer, Callable], InstructionData]

META = torch.device("meta")
LOOKED_AT = 200
"""Conversations whose tokens and images are counted."""
PARTS = {
    "vision encoder": "vision_encoder.",
    "language model": "lm",
    "resampler": "perceiver",
    "gated cross-attention": "xattn",
    "LoRA": ".lora_",
    "rows of new tokens": ROWS,
}
"""The parts of the table, and what their parameters are told by."""
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass
class Findings:
    """What is wrong with a command, and what its user may want to know."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """What `work` returns; None, and a problem more, where it refuses."""
        try:
            return work(*args, **kwargs)
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
            return None


@dataclass(frozen=True)
class Course:
    """How long training takes, and what a step is made of."""

    steps_per_epoch: int
    steps: int
    samples: int
    """Of one step, on all ranks."""
    tokens: float
    """Of one sample, on average; padding not counted."""
    images: float
    """Of one sample, on average."""


@dataclass(frozen=True)
class Plan:
    """What a command would do: a text, and what is wrong with the command."""

    text: str
    problems: list[str]


def dry_run(flags: Flags, ranks: Ranks, data_of: DataOf) -> int:
    """Print the plan on the main rank; the exit code: 1 where something is wrong with the command.

    `data_of` makes the checked records to train on out of datasets, tokenizer and image transform.
    """
    if not ranks.is_main:
        return 0
    made = plan(flags, ranks, data_of)
    sys.stdout.write(f"{made.text}\n")
    return 1 if made.problems else 0


def plan(flags: Flags, ranks: Ranks, data_of: DataOf) -> Plan:
    """The plan of a command for one of `ranks`; what is refused on the way is collected."""
    found, sections = Findings(), []
    tuning = found.attempt(read_tuning_config, flags.optim.tuning_config)
    found.attempt(refuse_unwritable, flags.run.run_name)
    loaded = [
        found.attempt(load_datasets, path, flags.data.data_cache) if path else None
        for path in (flags.data.instruction_data, flags.run.val_data)
    ]
    checkpoints = _checkpoints(flags.run, ranks, found)
    _look_for_weights(flags.model, found)
    built = found.attempt(model_on_meta, flags.model, flags.optim.precision)
    if built is not None:
        model, transform, tokenizer = built
        turns = found.attempt(TurnTokenizer, tokenizer, model.media_token_id, flags.data.instruction_prompt_template)
        data, _ = [
            found.attempt(data_of, datasets, turns, transform) if datasets and turns else None for datasets in loaded
        ]
        is_tuned = tuning is not None and found.attempt(tune, model, tuning, flags.model) is not None
        _check_length(model, flags.data.max_length, found)
        if checkpoints:
            found.attempt(_check_checkpoints, model, checkpoints, flags)
        sections.append(_table("parameters", ("trained", "frozen"), _parts(model)))
        if is_tuned:
            image_shape = tuple(transform(Image.new("RGB", (1, 1))).shape)
            sections.append(_memory(model, flags, ranks, image_shape, found))
        if data is not None and (course := found.attempt(_course, data, flags, ranks)) is not None:
            sections += [_mixture(data, flags), _steps(course, flags, ranks, found)]
    sections += [_listed("notes", found.notes), _listed("wrong with this command", found.problems)]
    return Plan("\n\n".join(filter(None, sections)), found.problems)


def model_on_meta(config: ModelConfig, precision: Precision) -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
    """As `build_model`, in no memory and without weights."""
    with META:
        return build_model(config, precision, load_weights=False)


def tune(model: Flamingo, tuning: TuningConfig, config: ModelConfig) -> list[str]:
    """As `prepare_model_for_tuning`, on the meta device."""
    with META:
        names = prepare_model_for_tuning(model, tuning, freeze_lm_embeddings=config.freeze_lm_embeddings)
    if not names:
        raise ValueError("nothing to train: the tuning config adds no LoRA and unfreezes no parameter")
    return names


def memory(model: Flamingo, flags: Flags, ranks: Ranks, image_shape: Sequence[int]) -> Memory:
    """The memory of a rank that trains a tuned model on the meta device, which is used up."""
    optim: OptimConfig = replace(flags.optim, compile=False, fsdp=False)
    trainer = make_trainer(model, optim, {}, 1, Ranks(0, 1, META))
    batch = largest_batch(
        model,
        batch_size=optim.batch_size,
        max_length=flags.data.max_length,
        max_img=flags.data.max_img,
        image_shape=image_shape,
    )
    shards = {"full": ranks.world_size, "hybrid": ranks.node_size, None: 1}[flags.optim.sharding]
    return estimate(trainer, batch, ranks, shards=shards)


def counts_by_part(model: Flamingo) -> dict[str, tuple[int, int]]:
    """Numbers of trained and of frozen parameters, by part."""
    counts: Counter[tuple[str, bool]] = Counter()
    for name, parameter in model.named_parameters():
        counts[_part(name), parameter.requires_grad] += parameter.numel()
    return {part: (counts[part, True], counts[part, False]) for part in PARTS}


def _part(name: str) -> str:
    begins = next((part for part in ("vision encoder", "rows of new tokens") if name.startswith(PARTS[part])), None)
    if begins or is_lora(name):
        return begins or "LoRA"
    return next(part for part, short in PARTS.items() if short == part_of(name))


def _parts(model: Flamingo) -> Iterator[tuple[str, ...]]:
    counts = counts_by_part(model)
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    for part, (trained, frozen) in {**counts, "all": (sums[0], sums[1])}.items():
        yield part, f"{trained:,}", f"{frozen:,}"


def _memory(model: Flamingo, flags: Flags, ranks: Ranks, image_shape: Sequence[int], found: Findings) -> str:
    optim = flags.optim
    how = f"{optim.sharding} shards" if optim.sharding and ranks.world_size > 1 else optim.precision
    title = f"memory of each of {ranks.world_size} ranks" if ranks.world_size > 1 else "memory"
    try:
        needs = memory(model, flags, ranks, image_shape)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        name = type(model.lang_encoder).__name__
        found.notes.append(f"memory is unknown for this model: {name} cannot be run in shapes alone ({reason})")
        return ""
    found.notes.append(
        f"memory is for {optim.batch_size} samples of {flags.data.max_length} tokens and {flags.data.max_img} images each,"
        " all other tokens supervised: that of tensors, beside what Python and its libraries take"
    )
    if ranks.device.type == "cpu":
        found.notes.append("on a CPU the gaps of the heap of glibc take about a third more (docs/performance.md)")
    if optim.compile:
        found.notes.append("memory is that of layers that are not compiled")
    rows = [(name.replace("_", " "), _bytes(value)) for name, value in vars(needs).items() if name != "peak" and value]
    return _table(title, (how,), [*rows, ("most at one time", _bytes(needs.peak))])


def _mixture(data: InstructionData, flags: Flags) -> str:
    return mixture_table(data, data.counts(flags.data.train_num_samples, flags.data.dataset_sampling_mode))


def _course(data: InstructionData, flags: Flags, ranks: Ranks) -> Course:
    epoch = data.epoch(0, flags.data.train_num_samples, flags.data.dataset_sampling_mode, flags.data.epoch_num_samples)
    optim = flags.optim
    batches = len(rank_share(epoch, optim.batch_size, 0, ranks.world_size)) // optim.batch_size
    per_epoch = math.ceil(batches / optim.gradient_accumulation_steps)
    seen = _some(epoch)
    return Course(
        steps_per_epoch=per_epoch,
        steps=per_epoch * optim.num_epochs,
        samples=optim.batch_size * ranks.world_size * min(optim.gradient_accumulation_steps, batches),
        tokens=sum(len(conversation.ids) for conversation in seen) / len(seen),
        images=sum(len(conversation.images) for conversation in seen) / len(seen),
    )


def _some(epoch: Epoch) -> list[Conversation]:
    """Conversations of an epoch, as far from each other as may be."""
    return [epoch.conversation(i) for i in range(0, len(epoch), math.ceil(len(epoch) / LOOKED_AT))]


def _steps(course: Course, flags: Flags, ranks: Ranks, found: Findings) -> str:
    optim = flags.optim
    if optim.warmup_steps >= course.steps:
        found.notes.append(
            f"--warmup_steps {optim.warmup_steps} is not below the {course.steps} steps of the run: the learning rate"
            f" never reaches {optim.learning_rate}"
        )
    rows = [
        ("epochs", f"{optim.num_epochs:,}"),
        ("optimizer steps of an epoch", f"{course.steps_per_epoch:,}"),
        ("optimizer steps", f"{course.steps:,}"),
        ("samples of a step", f"{course.samples:,}"),
        ("tokens of a step, at most", f"{course.samples * flags.data.max_length:,}"),
        ("tokens of a step, on average", f"{course.samples * course.tokens:,.0f}"),
        ("images of a step, on average", f"{course.samples * course.images:,.1f}"),
    ]
    return _table("steps", (f"{ranks.world_size} ranks" if ranks.world_size > 1 else "",), rows)


def _checkpoints(run: RunConfig, ranks: Ranks, found: Findings) -> str | None:
    """The checkpoints that the run would load."""
    if run.resume_from_checkpoint or not run.continue_training:
        found.attempt(continued_from, run, ranks)
        if not run.resume_from_checkpoint:
            found.notes.append(
                "no checkpoint is loaded: the gates of the cross-attention are at zero and the resampler is random, unless"
                " --resume_from_checkpoint names a released OpenFlamingo"
            )
        return run.resume_from_checkpoint
    newest = found.attempt(newest_checkpoint, run.run_name)
    if newest is None and not checkpoints_of(run.run_name):
        found.notes.append(f"--continue_training finds no checkpoint in {run.run_name}: the run starts anew")
    return None if newest is None else str(newest)


def _check_checkpoints(model: Flamingo, paths: str, flags: Flags) -> None:
    """Raise ValueError for checkpoints that do not fit the model, or that a run cannot go on from."""
    payloads = read_checkpoints(paths)
    if model.trained_rows is not None:  # which rows of a table they are has to have values
        model.trained_rows.ids = torch.tensor([model.media_token_id, model.eoc_token_id])
    with META:
        load_payloads(model, payloads)
    if not flags.run.continue_training:
        return
    path, last = list(payloads.items())[-1]
    refuse_incomplete(path, last)
    if last["place"]["epoch"] >= flags.optim.num_epochs:
        raise ValueError(f"{path} has done {last['place']['epoch']} epochs already: raise --num_epochs to train on")


def _check_length(model: Flamingo, max_length: int, found: Findings) -> None:
    config: Any = model.lang_encoder.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and max_length > positions:
        found.problems.append(f"--max_length {max_length} is more than the {positions} positions of the language model")


def _look_for_weights(config: ModelConfig, found: Findings) -> None:
    """Say which weights the run would not find, as far as that can be told without loading them."""
    folder = Path(config.lm_path)
    if folder.is_dir() and not any(path for end in WEIGHTS for path in folder.glob(end)):
        found.notes.append(f"language model {folder} holds no weights yet")
    tag, tower = config.vision_encoder_pretrained, config.vision_encoder_path
    if tag == NO_WEIGHTS or Path(tag).is_file() or Path(tower).is_dir() or ":" in tower:
        return
    if tag not in open_clip.list_pretrained_tags_by_model(Path(tower).stem if tower.endswith(".json") else tower):
        found.problems.append(f"--vision_encoder_pretrained {tag!r} is neither a file nor a tag of {tower}")


def _table(title: str, header: Sequence[str], rows: Any) -> str:
    """Rows of a name and numbers, these aligned at their ends."""
    lines = [(title, *header), *((f"  {name}", *numbers) for name, *numbers in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:]))]).rstrip()
        for name, *numbers in lines
    )


def _listed(title: str, sentences: list[str]) -> str:
    return "\n".join([f"{title}:", *(f"  - {sentence}" for sentence in sentences)]) if sentences else ""


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"
