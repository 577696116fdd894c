"""Fine-tune on instruction data: `torchrun --nproc_per_node N open_flamingo/instruction_tuning/train.py --help`.

Top to bottom: main > train > train_epoch; one optimizer step is in trainer.py.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.build import Recipe, build_model
from open_flamingo.instruction_tuning.checkpoint import load_payloads, read_checkpoints
from open_flamingo.instruction_tuning.command import parse, run
from open_flamingo.instruction_tuning.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import load_datasets
from open_flamingo.instruction_tuning.data.loader import Batch, InstructionData, batches
from open_flamingo.instruction_tuning.data.summary import mixture_table
from open_flamingo.instruction_tuning.distributed import Ranks, joined
from open_flamingo.instruction_tuning.tracking import Tracker, log_to_terminal, open_run, refuse_unwritable
from open_flamingo.instruction_tuning.trainer import Step, Trainer, make_trainer, restore, save_epoch, train_step
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning, read_tuning_config
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.vision import NO_WEIGHTS, uses_quick_gelu

logger = logging.getLogger("open_flamingo.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say; see `--help`."""
    parts = [ModelConfig, DataConfig, OptimConfig, RunConfig]
    model_config, data_config, optim, run_config = parse("Fine-tune a Flamingo on instruction data.", parts, argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after its first use
    with joined(run_config.dist_url, run_config.dist_backend, set_device=not run_config.no_set_device_rank) as ranks:
        log_to_terminal(is_main=ranks.is_main)
        train(model_config, data_config, optim, run_config, ranks)
    return 0


def train(
    model_config: ModelConfig, data_config: DataConfig, optim: OptimConfig, run_config: RunConfig, ranks: Ranks
) -> None:
    """Build everything, cheapest first so that mistakes show early, then train epoch by epoch."""
    tuning = read_tuning_config(optim.tuning_config)
    datasets = load_datasets(data_config.instruction_data, data_config.data_cache, quiet=not ranks.is_main)
    refuse_unwritable(run_config.run_name)
    torch.manual_seed(run_config.seed)
    model, transform, tokenizer = build_model(model_config, optim.precision)
    model_config = replace(model_config, quick_gelu=uses_quick_gelu(model.vision_encoder))
    prepare_model_for_tuning(model, tuning, freeze_lm_embeddings=model_config.freeze_lm_embeddings)
    bases = load_bases(model, run_config)
    data = InstructionData(
        datasets,
        TurnTokenizer(tokenizer, model.media_token_id, data_config.instruction_prompt_template),
        transform,
        max_length=data_config.max_length,
        max_img=data_config.max_img,
        multiturn_augmentation=data_config.multiturn_augmentation,
        seed=run_config.seed,
        packing=data_config.pack,
        cache=data_config.data_cache,
        quiet=not ranks.is_main,
    )
    if not data_config.skip_check_overlength:
        data.check()
    loader = partial(epoch_batches, data, data_config, optim, ranks)
    steps = math.ceil(len(loader(0)) / optim.gradient_accumulation_steps) * optim.num_epochs
    trainer = make_trainer(model, optim, tuning.learning_rates, steps, ranks)
    continued = run_config.resume_from_checkpoint if run_config.continue_training else None
    first_epoch = restore(trainer, continued) if continued else 0
    if first_epoch >= optim.num_epochs:
        raise ValueError(f"{continued} has done {first_epoch} epochs already: raise --num_epochs to train on")
    flags = {name: value for c in (model_config, data_config, optim, run_config) for name, value in asdict(c).items()}
    tracker = open_run(run_config.run_name, flags, is_main=ranks.is_main)
    log_plan(model, steps)
    logger.info(
        "%s", mixture_table(data, data.counts(data_config.train_num_samples, data_config.dataset_sampling_mode))
    )
    shown = Shown(tokenizer, tracker, run_config.logging_steps)
    config = Recipe(model_config, tuning, data_config.instruction_prompt_template).to_json()
    also = found_nowhere_else(model, model_config, bases)
    try:
        for epoch in range(first_epoch, optim.num_epochs):
            torch.manual_seed(run_config.seed + epoch * ranks.world_size + ranks.rank)  # dropout
            train_epoch(trainer, loader(epoch), epoch, tracker, shown)
            save_epoch(trainer, run_config, epoch, also, config=config, base_checkpoints=bases)
    finally:
        tracker.close()


def load_bases(model: Flamingo, run_config: RunConfig) -> list[str]:
    """Load --resume_from_checkpoint; the files that a checkpoint of this run will need below it."""
    if not run_config.resume_from_checkpoint:
        return []
    payloads = read_checkpoints(run_config.resume_from_checkpoint)
    load_payloads(model, payloads)
    files = [str(Path(file).resolve()) for file in payloads]
    # a continued run saves again all that its last checkpoint holds
    return files[:-1] if run_config.continue_training else files


def found_nowhere_else(model: Flamingo, config: ModelConfig, bases: list[str]) -> list[nn.Module]:
    """The frozen modules that a checkpoint has to hold: what started at random, and is in no file below it."""
    started_here = [] if bases else [model.perceiver, *model.gated_cross_attn_layers]
    return [*started_here, model.vision_encoder] if config.vision_encoder_pretrained == NO_WEIGHTS else started_here


def epoch_batches(
    data: InstructionData, config: DataConfig, optim: OptimConfig, ranks: Ranks, epoch: int
) -> DataLoader:
    """This rank's batches of one epoch."""
    samples = data.epoch(epoch, config.train_num_samples, config.dataset_sampling_mode, config.epoch_num_samples)
    return batches(
        samples,
        batch_size=optim.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=config.workers,
        pin_memory=ranks.device.type == "cuda",
    )


def train_epoch(trainer: Trainer, loader: DataLoader, epoch: int, tracker: Tracker, shown: "Shown") -> None:
    """One pass over the loader: an optimizer step for each window of micro-batches."""
    total = math.ceil(len(loader) / trainer.accumulation)
    with tqdm(total=total, desc=f"epoch {epoch}", unit="step", disable=not trainer.ranks.is_main) as bar:
        started = time.perf_counter()
        for window in windows(loader, trainer.accumulation):
            window = [batch.to(trainer.ranks.device) for batch in window]
            loaded = time.perf_counter()
            lr = float(trainer.scheduler.get_last_lr()[0])
            step = train_step(trainer, window)
            finished = time.perf_counter()
            samples = sum(len(batch.input_ids) for batch in window) / (finished - started)
            tracker.scalars(
                {
                    "train/loss": step.loss,
                    "train/accuracy": step.accuracy,
                    "train/lr": lr,
                    "train/grad_norm": step.grad_norm,
                    "data/padding": padding_share(window),
                    "time/data_time": loaded - started,
                    "time/step_time_m": finished - started,
                    "time/samples_per_second": samples * trainer.ranks.world_size,
                    "time/samples_per_second_per_gpu": samples,
                },
                trainer.step,
            )
            shown.after(trainer.step, window[-1], step)
            bar.set_postfix(loss=f"{step.loss:.3f}", accuracy=f"{step.accuracy:.2f}")
            bar.update()
            started = finished


def windows(loader: DataLoader, size: int) -> Iterator[list[Batch]]:
    """The loader's micro-batches, `size` at a time; the last window may be shorter."""
    iterator = iter(loader)
    while window := list(islice(iterator, size)):
        yield window


def padding_share(window: list[Batch]) -> float:
    """The share of a window's tokens that are padding."""
    masks = [batch.attention_mask for batch in window]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@dataclass
class Shown:
    """Shows, every so many steps, one sample's input, its supervised text and the model's likeliest text."""

    tokenizer: PreTrainedTokenizerBase
    tracker: Tracker
    every: int

    def after(self, step_number: int, batch: Batch, step: Step) -> None:
        """Show the first sample of `batch` where its turn has come."""
        if step_number % self.every:
            return
        supervised = batch.supervised[0, 1:]
        text = (
            f"input:      {self._decode(batch.input_ids[0][batch.attention_mask[0].bool()])}\n"
            f"supervised: {self._decode(batch.input_ids[0, 1:][supervised])}\n"
            f"predicted:  {self._decode(step.predictions[: int(supervised.sum())])}"
        )
        logger.info("step %d, loss %.4f\n%s", step_number, step.loss, text)
        self.tracker.text("train/sample", text, step_number)

    def _decode(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids))


def log_plan(model: Flamingo, steps: int) -> None:
    """Say what trains."""
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info("training %.2f M of %.2f M parameters for %d steps", count / 1e6, total / 1e6, steps)


if __name__ == "__main__":
    run(main)
