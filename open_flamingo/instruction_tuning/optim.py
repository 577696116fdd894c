"""AdamW over parameter groups, and the learning rate's course in optimizer steps."""

from collections import defaultdict
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from open_flamingo.instruction_tuning.config import Schedule
from open_flamingo.instruction_tuning.tuning import learning_rate_of


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rates: dict[str, float],
) -> AdamW:
    """AdamW on what requires gradients; weight decay on the gated cross-attention only, as OpenFlamingo trained."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            decay = weight_decay if "gated_cross_attn" in name else 0.0
            groups[learning_rate_of(name, learning_rate, learning_rates), decay].append(parameter)
    if not groups:
        raise ValueError("nothing to train: the tuning config adds no LoRA and unfreezes no parameter")
    param_groups = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return AdamW(param_groups, fused=True)


def make_scheduler(optimizer: Optimizer, schedule: Schedule, *, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear warm-up from zero, then constant, or to zero at `total_steps` by a line or a cosine."""
    name = "constant_with_warmup" if schedule == "constant" else schedule
    return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
