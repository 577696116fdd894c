"""Cross-entropy straight from hidden states: logits exist for a chunk of positions at a time, and are never kept.

The gradient is computed with the loss, in the same chunk, so the backward pass multiplies no matrices: memory does not
grow with vocabulary times length, and the head's products are those of an ordinary forward and backward pass.
"""

# m supervised positions, d width, V vocabulary, k trained rows

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 2**24
"""Logits held at a time: of so many positions that vocabulary times positions stays below."""


@dataclass
class SupervisedLoss:
    """What the supervised tokens of a batch cost."""

    total: Tensor
    """The sum of `losses`, with a gradient."""
    losses: Tensor
    """Cross-entropy of each supervised token, in reading order, in fp32: (m,)."""
    predictions: Tensor
    """The likeliest token in each one's place: (m,)."""


def supervised_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: Tensor | None = None,
    row_ids: Tensor | None = None,
) -> SupervisedLoss:
    """The loss of hidden states (m, d) under a frozen head (V, d), whose rows `row_ids` (k,) are `rows` (k, d) if given."""
    return SupervisedLoss(*_ChunkedCrossEntropy.apply(hidden, weight, bias, targets, rows, row_ids))


def loss_of_logits(logits: Tensor, targets: Tensor) -> SupervisedLoss:
    """The same of logits (m, V), for models that change them after the head."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return SupervisedLoss(losses.sum(), losses.detach(), logits.argmax(dim=-1))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: Tensor | None,
        row_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        predictions = torch.empty_like(targets)
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_rows = torch.zeros_like(rows) if needs_grad and rows is not None else None
        with torch.autocast(device, enabled=False):
            bias, rows = (None if x is None else x.to(dtype) for x in (bias, rows))
            head = _Head(weight.to(dtype), bias, rows, row_ids)
            size = max(1, CHUNK_LOGITS // len(weight))
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                x = hidden[part].to(dtype)
                probabilities, losses[part], predictions[part] = _softmax(head.logits(x).float(), targets[part])
                if grad_hidden is not None:
                    grad = probabilities.scatter_add_(1, targets[part, None], -torch.ones_like(losses[part, None]))
                    grad_hidden[part] = head.backward(grad.to(dtype), x, grad_rows)
        ctx.save_for_backward(grad_hidden, grad_rows)
        ctx.mark_non_differentiable(losses, predictions)
        return losses.sum(), losses, predictions

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_rows = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return grad_hidden, None, None, None, grad_rows, None


@dataclass
class _Head:
    """An output head of which some rows are kept apart."""

    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    row_ids: Tensor | None

    def logits(self, x: Tensor) -> Tensor:
        logits = F.linear(x, self.weight, self.bias)
        if self.rows is not None:
            logits[:, self.row_ids] = F.linear(x, self.rows, None if self.bias is None else self.bias[self.row_ids])
        return logits

    def backward(self, grad: Tensor, x: Tensor, grad_rows: Tensor | None) -> Tensor:
        """The gradient of `x` for that of its logits, which is used up; that of the rows is added to `grad_rows`."""
        if self.rows is None or grad_rows is None:
            return grad @ self.weight
        grad_of_rows = grad[:, self.row_ids]
        grad_rows += grad_of_rows.T @ x
        grad[:, self.row_ids] = 0
        return grad @ self.weight + grad_of_rows @ self.rows


def _softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities in the place of `logits` (c, V), cross-entropy of each row (c,), likeliest token of each row (c,)."""
    top, best = logits.max(dim=-1, keepdim=True)
    logits -= top
    picked = logits.gather(1, targets[:, None])
    total = logits.exp_().sum(dim=-1, keepdim=True)
    return logits.div_(total), (total.log() - picked).squeeze(1), best.squeeze(1)
