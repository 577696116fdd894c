"""Fine-tune on instruction data: `torchrun --nproc_per_node N open_flamingo/instruction_tuning/train.py --help`.

Top to bottom: main > train > train_epoch > train_step.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.build import Recipe, build_model
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints, read_checkpoint, save_checkpoint, split_paths
from open_flamingo.instruction_tuning.command import parse, run
from open_flamingo.instruction_tuning.config import DataConfig, ModelConfig, OptimConfig, Precision, RunConfig
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import load_datasets
from open_flamingo.instruction_tuning.data.loader import Batch, InstructionData, batches
from open_flamingo.instruction_tuning.distributed import Ranks, joined
from open_flamingo.instruction_tuning.optim import make_optimizer, make_scheduler
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.instruction_tuning.tracking import Tracker, log_to_terminal, open_run, refuse_unwritable
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning, read_tuning_config
from open_flamingo.src.flamingo import Flamingo

logger = logging.getLogger("open_flamingo.train")

MAX_GRAD_NORM = 1.0


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
    datasets = load_datasets(data_config.instruction_data)
    refuse_unwritable(run_config.run_name)
    torch.manual_seed(run_config.seed)
    model, transform, tokenizer = build_model(model_config, optim.precision)
    trained = prepare_model_for_tuning(model, tuning, freeze_lm_embeddings=model_config.freeze_lm_embeddings)
    if run_config.resume_from_checkpoint:
        load_checkpoints(model, run_config.resume_from_checkpoint)
    data = InstructionData(
        datasets,
        TurnTokenizer(tokenizer, model.media_token_id, data_config.instruction_prompt_template),
        transform,
        max_length=data_config.max_length,
        max_img=data_config.max_img,
        multiturn_augmentation=data_config.multiturn_augmentation,
        seed=run_config.seed,
    )
    if not data_config.skip_check_overlength:
        data.check(quiet=not ranks.is_main)
    loader = partial(epoch_batches, data, data_config, optim, ranks)
    steps = math.ceil(len(loader(0)) / optim.gradient_accumulation_steps) * optim.num_epochs
    trainer = make_trainer(model, optim, tuning.learning_rates, steps, ranks)
    continued = run_config.resume_from_checkpoint if run_config.continue_training else None
    first_epoch = restore(trainer, continued) if continued else 0
    flags = {name: value for c in (model_config, data_config, optim, run_config) for name, value in asdict(c).items()}
    tracker = open_run(run_config.run_name, flags, is_main=ranks.is_main)
    log_plan(model, trained, data, steps)
    shown = Shown(tokenizer, tracker, run_config.logging_steps)
    config = Recipe(model_config, tuning, data_config.instruction_prompt_template).to_json()
    try:
        for epoch in range(first_epoch, optim.num_epochs):
            train_epoch(trainer, loader(epoch), epoch, tracker, shown)
            save_epoch(trainer, run_config, epoch, config)
    finally:
        tracker.close()


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


@dataclass
class Trainer:
    """What a training step works on."""

    model: Flamingo
    wrapped: nn.Module
    """The model, or DDP around it."""
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler
    precision: Precision
    accumulation: int
    ranks: Ranks
    step: int = 0
    """Optimizer steps done."""


def make_trainer(
    model: Flamingo, optim: OptimConfig, learning_rates: dict[str, float], total_steps: int, ranks: Ranks
) -> Trainer:
    """Put the model on its device, in its precision, among its ranks, with optimizer and schedule."""
    cast_frozen(model, optim.precision)
    if optim.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(ranks.device).train()
    model.vision_encoder.eval()
    optimizer = make_optimizer(
        model.named_parameters(),
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        learning_rates=learning_rates,
    )
    scheduler = make_scheduler(optimizer, optim.lr_scheduler, warmup_steps=optim.warmup_steps, total_steps=total_steps)
    scaler = GradScaler(ranks.device.type, enabled=optim.precision == "fp16")
    return Trainer(
        model,
        distribute(model, ranks),
        optimizer,
        scheduler,
        scaler,
        optim.precision,
        optim.gradient_accumulation_steps,
        ranks,
    )


def distribute(model: Flamingo, ranks: Ranks) -> nn.Module:
    """DDP around the model where there are several ranks."""
    if ranks.world_size == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


@dataclass
class Step:
    """What a training step saw."""

    loss: float
    """Mean over the supervised tokens of the window, over all ranks."""
    accuracy: float
    """Share of these tokens that were the likeliest ones."""
    grad_norm: float
    """Before clipping."""
    predictions: Tensor
    """The likeliest tokens at the supervised positions of this rank's last micro-batch."""


def train_epoch(trainer: Trainer, loader: DataLoader, epoch: int, tracker: Tracker, shown: "Shown") -> None:
    """One pass over the loader: an optimizer step for each window of micro-batches."""
    total = math.ceil(len(loader) / trainer.accumulation)
    bar = tqdm(total=total, desc=f"epoch {epoch}", unit="step", disable=not trainer.ranks.is_main)
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
    bar.close()


def windows(loader: DataLoader, size: int) -> Iterator[list[Batch]]:
    """The loader's micro-batches, `size` at a time; the last window may be shorter."""
    iterator = iter(loader)
    while window := list(islice(iterator, size)):
        yield window


def padding_share(window: list[Batch]) -> float:
    """The share of a window's tokens that are padding."""
    masks = [batch.attention_mask for batch in window]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def train_step(trainer: Trainer, window: list[Batch]) -> Step:
    """One optimizer step on the sum of the losses of all supervised tokens of the window, over their number."""
    ranks = trainer.ranks
    supervised = [batch.supervised[:, 1:].sum() for batch in window]
    targets = ranks.sum(torch.stack(supervised).sum()).clamp(min=1)
    totals = torch.zeros(2, device=ranks.device)
    for i, batch in enumerate(window):
        is_last = i == len(window) - 1
        with nullcontext() if is_last or ranks.world_size == 1 else trainer.wrapped.no_sync():  # type: ignore[operator]
            loss, predictions, correct = summed_loss(trainer, batch)
            # DDP takes the mean over ranks, and the loss is a sum
            trainer.scaler.scale(loss * ranks.world_size / targets).backward()
        totals += torch.stack([loss.detach(), correct])
    mean_loss, accuracy = (ranks.sum(totals) / targets).tolist()
    if not math.isfinite(mean_loss):
        raise ValueError(f"the loss is {mean_loss} after {trainer.step} steps: lower --learning_rate, or train in fp32")
    trainer.scaler.unscale_(trainer.optimizer)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.scheduler.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    return Step(mean_loss, accuracy, grad_norm.item(), predictions)


def summed_loss(trainer: Trainer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The summed cross-entropy of the supervised tokens, the likeliest tokens in their place (m,), how many agree."""
    targets = batch.input_ids[:, 1:][batch.supervised[:, 1:]]
    with autocast(trainer.ranks.device, trainer.precision):
        logits = trainer.wrapped(
            batch.images, batch.input_ids, batch.attention_mask, logits_at=F.pad(batch.supervised[:, 1:], (0, 1))
        ).logits
    predictions = logits.argmax(dim=-1)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), predictions, (predictions == targets).sum()


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


def log_plan(model: Flamingo, trained: list[str], data: InstructionData, steps: int) -> None:
    """Say what trains, and on what."""
    parameters = dict(model.named_parameters())
    count = sum(parameters[name].numel() for name in trained)
    total = sum(parameter.numel() for parameter in parameters.values())
    logger.info("training %.2f M of %.2f M parameters for %d steps", count / 1e6, total / 1e6, steps)
    for dataset, usable in zip(data.datasets, data.usable):
        logger.info("%s: %d of %d records", dataset.name, len(usable), len(dataset.records))


def save_epoch(trainer: Trainer, run_config: RunConfig, epoch: int, config: dict[str, Any]) -> None:
    """Write `checkpoint_{epoch}.pt`, on the main rank."""
    if trainer.ranks.is_main:
        path = checkpoint_path(run_config.run_name, epoch)
        save_checkpoint(
            path,
            trainer.model,
            epoch=epoch,
            step=trainer.step,
            optimizer_state_dict=trainer.optimizer.state_dict(),
            lr_scheduler_state_dict=trainer.scheduler.state_dict(),
            scaler_state_dict=trainer.scaler.state_dict(),
            config=config,
        )
        logger.info("saved %s", path)
        if run_config.delete_previous_checkpoint:
            checkpoint_path(run_config.run_name, epoch - 1).unlink(missing_ok=True)
    trainer.ranks.barrier()


def checkpoint_path(run_folder: Path, epoch: int) -> Path:
    """Where an epoch's checkpoint lies."""
    return run_folder / f"checkpoint_{epoch}.pt"


def restore(trainer: Trainer, paths: str) -> int:
    """Take optimizer, schedule and step from the last of `paths`; the epoch to go on with."""
    path = list(split_paths(paths))[-1]
    payload = read_checkpoint(path)
    if "optimizer_state_dict" not in payload:
        raise ValueError(f"checkpoint {path} holds weights only: --continue_training needs one written by training")
    trainer.optimizer.load_state_dict(payload["optimizer_state_dict"])
    trainer.scheduler.load_state_dict(payload["lr_scheduler_state_dict"])
    trainer.scaler.load_state_dict(payload["scaler_state_dict"])
    trainer.step = payload["step"]
    return payload["epoch"] + 1


if __name__ == "__main__":
    run(main)
