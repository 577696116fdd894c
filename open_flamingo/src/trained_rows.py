"""A few rows of frozen embeddings that train: gradients and optimizer state for two tokens, not for the vocabulary."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TrainedRows(nn.Module):
    """Rows (k, d) that stand in for those of an embedding, and of an output head that shares its weights."""

    ids: Tensor

    def __init__(self, embedding: nn.Module, head: nn.Module, ids: Sequence[int]) -> None:
        """Put the rows `ids` of `embedding` in place of themselves: values stay, gradients reach these alone."""
        super().__init__()
        table = embedding.weight
        assert isinstance(table, Tensor)
        self.register_buffer("ids", torch.tensor(ids, device=table.device), persistent=False)
        self.weight = nn.Parameter(table.detach()[self.ids].float().clone())
        self.in_head = head.weight is table
        embedding.register_forward_hook(self._embed)
        if self.in_head:
            head.register_forward_hook(self._project)

    def take(self, table: Tensor) -> None:
        """Start from the rows of a whole table (V, d)."""
        self.weight.data.copy_(table[self.ids.to(table.device)])

    def _embed(self, _embedding: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        for row, token in zip(self.weight, self.ids, strict=True):
            out = torch.where((args[0] == token)[..., None], row.to(out.dtype), out)
        return out

    def _project(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        bias = head.bias[self.ids] if isinstance(head.bias, Tensor) else None
        own = F.linear(args[0], self.weight.to(args[0].dtype), bias)
        return logits.index_copy(-1, self.ids, own.to(logits.dtype))
