"""One optimizer step, and what it works on: the loss is over all supervised tokens of a window and of all ranks."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from open_flamingo.instruction_tuning.checkpoint import read_checkpoint, save_checkpoint, split_paths
from open_flamingo.instruction_tuning.config import OptimConfig, Precision, RunConfig
from open_flamingo.instruction_tuning.data.loader import Batch
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.optim import make_optimizer, make_scheduler
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen, training_attention
from open_flamingo.src.flamingo import Flamingo

logger = logging.getLogger("open_flamingo.train")

MAX_GRAD_NORM = 1.0


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
    device, precision = trainer.ranks.device, trainer.precision
    with autocast(device, precision), training_attention(device, precision, batch.input_ids.shape[1]):
        logits = trainer.wrapped(
            batch.images, batch.input_ids, batch.attention_mask, logits_at=F.pad(batch.supervised[:, 1:], (0, 1))
        ).logits
    predictions = logits.argmax(dim=-1)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), predictions, (predictions == targets).sum()


def save_epoch(trainer: Trainer, run_config: RunConfig, epoch: int, also: Sequence[nn.Module], **about: Any) -> None:
    """Write `checkpoint_{epoch}.pt` on the main rank: what trains, the modules `also`, and what `about` says."""
    if trainer.ranks.is_main:
        path = checkpoint_path(run_config.run_name, epoch)
        save_checkpoint(
            path,
            trainer.model,
            also=also,
            epoch=epoch,
            step=trainer.step,
            optimizer_state_dict=trainer.optimizer.state_dict(),
            lr_scheduler_state_dict=trainer.scheduler.state_dict(),
            scaler_state_dict=trainer.scaler.state_dict(),
            **about,
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
    path = split_paths(paths)[-1]
    payload = read_checkpoint(path)
    needed = ("epoch", "step", "optimizer_state_dict", "lr_scheduler_state_dict", "scaler_state_dict")
    if missing := [name for name in needed if name not in payload]:
        raise ValueError(
            f"checkpoint {path} lacks {missing[0]!r}: --continue_training needs one written by this command"
        )
    trainer.optimizer.load_state_dict(payload["optimizer_state_dict"])
    trainer.scheduler.load_state_dict(payload["lr_scheduler_state_dict"])
    trainer.scaler.load_state_dict(payload["scaler_state_dict"])
    trainer.step = payload["step"]
    return payload["epoch"] + 1
