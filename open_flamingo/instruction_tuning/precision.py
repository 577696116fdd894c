"""Frozen weights in half precision, trained weights and optimizer state in fp32, arithmetic under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from open_flamingo.instruction_tuning.config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16, "fp16": torch.float16}
_FROZEN = {"bf16": torch.bfloat16, "fp16": torch.float16}

SHORT_TEXT = 400
"""Tokens below which plain matrix products train faster than the fused attention kernel, in half precision on a CPU."""


def frozen_dtype(precision: Precision) -> torch.dtype:
    """What frozen weights are stored in."""
    return _FROZEN.get(precision, torch.float32)


def cast_frozen(model: nn.Module, precision: Precision) -> None:
    """Cast the frozen weights to the precision's storage type and the trained ones to fp32, in place."""
    frozen = frozen_dtype(precision)
    for module in model.modules():
        # norms are small; batch statistics lose too much in half precision, and a CPU's LayerNorm takes no fp32 input then
        dtype = torch.float32 if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm) else frozen
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """The arithmetic of a precision."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def training_attention(device: torch.device, precision: Precision, length: int) -> AbstractContextManager:
    """The attention kernel to train with, for texts of `length` tokens.

    On a CPU the fused bf16 kernel takes four times as long as plain matrix products at 20 tokens, and less from about
    400 tokens on (docs/performance.md).
    """
    if device.type == "cpu" and precision != "fp32" and length < SHORT_TEXT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
