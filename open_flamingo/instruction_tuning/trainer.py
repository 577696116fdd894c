"""One optimizer step, and what it works on: the loss is over all supervised tokens of a window and of all ranks."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from open_flamingo.instruction_tuning.config import OptimConfig, Precision
from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.data.loader import Piece
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.optim import make_optimizer, make_scheduler
from open_flamingo.instruction_tuning.parallel import distribute, unsynced, whole
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.src.attention import use_attend
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.loss import SupervisedLoss

MAX_GRAD_NORM = 1.0


@dataclass
class Trainer:
    """What a training step works on."""

    model: Flamingo
    wrapped: nn.Module
    """What is called: the model, or DDP around it."""
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler
    precision: Precision
    accumulation: int
    ranks: Ranks
    seed: int = 0
    step: int = 0
    """Windows taken: the optimizer stepped on all of them but the skipped ones."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float = math.inf
    """The lowest in validation."""


def make_trainer(
    model: Flamingo,
    optim: OptimConfig,
    learning_rates: dict[str, float],
    total_steps: int,
    ranks: Ranks,
    seed: int = 0,
) -> Trainer:
    """Put the model on its device, in its precision, among its ranks, with optimizer and schedule."""
    cast_frozen(model, optim.precision)
    use_attend(model.lang_encoder)
    if optim.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    if optim.compile:
        model.compile_layers()
    wrapped = distribute(model, ranks, optim.sharding)
    optimizer = make_optimizer(
        model.named_parameters(),
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        learning_rates=learning_rates,
    )
    return Trainer(
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=make_scheduler(
            optimizer, optim.lr_scheduler, warmup_steps=optim.warmup_steps, total_steps=total_steps
        ),
        scaler=GradScaler(ranks.device.type, enabled=optim.precision == "fp16"),
        precision=optim.precision,
        accumulation=optim.gradient_accumulation_steps,
        ranks=ranks,
        seed=seed,
    )


@dataclass
class Step:
    """What a training step saw."""

    loss: float
    """Mean over the supervised tokens of the window, over all ranks."""
    accuracy: float
    """Share of these tokens that were the likeliest ones."""
    grad_norm: float
    """Before clipping."""
    lr: float
    """Of this step, in the first parameter group."""
    tally: "Tally"
    """Of all ranks."""
    predictions: Tensor | None = None
    """The likeliest tokens at the supervised positions of this rank's last micro-batch."""
    problem: str = ""
    """Why the weights were left as they were, if they were."""
    suspects: list[Piece] = field(default_factory=list)
    """The records of this rank's micro-batches whose loss is not finite."""


@dataclass
class Tally:
    """Summed loss, right predictions and number of supervised tokens, by dataset: (D, 3)."""

    sums: Tensor

    @property
    def loss(self) -> float:
        """Mean per token; NaN without any."""
        total, _, count = self.sums.sum(dim=0).tolist()
        return total / count if count else math.nan

    @property
    def accuracy(self) -> float:
        """Share of right predictions; NaN without any."""
        _, right, count = self.sums.sum(dim=0).tolist()
        return right / count if count else math.nan

    def by_dataset(self) -> dict[int, float]:
        """The mean loss of each dataset that has a token."""
        return {i: total / count for i, (total, _, count) in enumerate(self.sums.tolist()) if count}


def train_step(trainer: Trainer, window: list[Batch], datasets: int = 1) -> Step:
    """One optimizer step on the sum of the losses of all supervised tokens of the window, over their number.

    Where there is none, or the loss or its gradient is not finite, no rank steps. `datasets` is their number.
    """
    ranks = trainer.ranks
    # dropout depends on the step alone, so that a run that was stopped goes on as if it had not been
    torch.manual_seed((trainer.seed * 2**20 + trainer.step) * ranks.world_size + ranks.rank)
    tally = torch.zeros(datasets, 3, device=ranks.device)
    targets = ranks.sum(torch.stack([batch.supervised[:, 1:].sum() for batch in window]).sum())
    trainer.step += 1
    lr = float(trainer.scheduler.get_last_lr()[0])
    if not targets.item():
        trainer.skipped += 1
        return Step(math.nan, math.nan, 0.0, lr, Tally(tally), problem="no supervised token")
    losses = []
    for i, batch in enumerate(window):
        with nullcontext() if i == len(window) - 1 else unsynced(trainer.wrapped):
            out = forward(trainer, batch)
            # DDP and FSDP take the mean over ranks, and the loss is a sum
            trainer.scaler.scale(out.total * ranks.world_size / targets).backward()
        add(tally, out, batch)
        losses.append(out.total.detach())
    result = Tally(ranks.sum(tally).cpu())
    step = Step(result.loss, result.accuracy, clip(trainer), lr, result, out.predictions)
    step.problem = problem_of(step)
    if step.problem:  # only then: each look at a value waits for the device
        step.suspects = [
            p for batch, loss in zip(window, losses, strict=True) if not loss.isfinite() for p in batch.pieces
        ]
    _finish(trainer, step)
    return step


def forward(trainer: Trainer, batch: Batch) -> SupervisedLoss:
    """The summed loss of a micro-batch's supervised tokens, in the run's precision."""
    with autocast(trainer.ranks.device, trainer.precision):
        return trainer.wrapped(batch.images, batch.input_ids, batch.attention_mask, supervised=batch.supervised)


def add(sums: Tensor, out: SupervisedLoss, batch: Batch) -> None:
    """Add a micro-batch to the sums of a tally."""
    supervised = batch.supervised[:, 1:]
    right = out.predictions == batch.input_ids[:, 1:][supervised]
    of_tokens = torch.stack([out.losses, right.float(), torch.ones_like(out.losses)], dim=1)
    sums.index_add_(0, batch.datasets[:, 1:][supervised], of_tokens)


def clip(trainer: Trainer) -> float:
    """Clip the gradients together; their norm before."""
    trainer.scaler.unscale_(trainer.optimizer)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    return whole(nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)).item()


def problem_of(step: Step) -> str:
    """Why a step must not be taken, if it must not."""
    if not math.isfinite(step.loss):
        return f"the loss is {step.loss}"
    return "" if math.isfinite(step.grad_norm) else f"the gradient's norm is {step.grad_norm}"


def _finish(trainer: Trainer, step: Step) -> None:
    if not step.problem:
        trainer.scaler.step(trainer.optimizer)
        trainer.scheduler.step()
        trainer.skipped_in_a_row = 0
    else:
        trainer.skipped += 1
        # a loss scale that is too high is lowered until it is not: that is how fp16 begins
        trainer.skipped_in_a_row += not (math.isfinite(step.loss) and trainer.scaler.get_scale() > 1)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
