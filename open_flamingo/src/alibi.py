"""Attention with linear biases (ALiBi, Press et al. 2022, arXiv:2108.12409): what both generations of MPT attend with.

Each head takes from a query's score of a key its slope times the distance between the two. With what a token may not see
this makes one additive mask for the whole stack of decoder layers: the first layer computes it, the others share it. In
training the attention kernel keeps its mask for the backward pass, so that sharing saves one such tensor per layer.
"""

# b samples, h heads, q queries, k keys

import math

import torch
from torch import Tensor

ROW_ALIGNMENT = 16
"""Elements that rows of the mask are apart by a multiple of: CUDA's kernel copies any other mask, in every layer."""


def slopes(heads: int, bias_max: float = 8) -> Tensor:
    """The slope of each head (h,): a falling geometric series down to `2 ** -bias_max`.

    Heads that are no power of two take from the series of the next power its second, fourth, ..., then its first, third.
    """
    series = 2 ** math.ceil(math.log2(heads))
    falling = 2.0 ** -(torch.arange(1, series + 1, dtype=torch.float32) * bias_max / series)
    if series == heads:
        return falling
    return torch.cat((falling[1::2], falling[::2]))[:heads]


def additive_mask(slope: Tensor, unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of heads with slopes (h,), and the lowest number where `unseen` (b, 1, q, k) holds: (b, h, q, k).

    The queries are the last q of the k positions. The bias is the distance itself and not, as in the code of MPT, the
    position of the key alone: softmax does not tell these apart, but half precision holds small numbers better, and so
    near keys have small ones. The lowest number is finite, because a row of padding sees nothing at all, and a row of
    infinities has no softmax.
    """
    b, _, q, k = unseen.shape
    position = torch.arange(k, device=unseen.device, dtype=torch.float32)
    distance = position[k - q :, None] - position
    width = math.ceil(k / ROW_ALIGNMENT) * ROW_ALIGNMENT
    mask = torch.empty(b, len(slope), q, width, device=unseen.device, dtype=dtype)[..., :k]
    mask.copy_(-slope.to(unseen.device)[:, None, None] * distance)
    return mask.masked_fill_(unseen, torch.finfo(dtype).min)


class SharedMask:
    """The additive mask of one run of the decoder layers, computed for the first layer that asks.

    The layers get it as an argument, so that it lives as long as the run, its backward pass and what that recomputes.
    """

    def __init__(self, heads: int, bias_max: float) -> None:
        self.slopes = slopes(heads, bias_max)
        self._mask: Tensor | None = None

    def get(self, unseen: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask (b, h, q, k) in the type of the queries, for what no query may see (b, 1, q, k)."""
        if self._mask is None:
            self._mask = additive_mask(self.slopes, unseen, dtype)
        return self._mask
