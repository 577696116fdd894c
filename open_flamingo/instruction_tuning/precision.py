"""Frozen weights in half precision, trained weights and optimizer state in fp32, arithmetic under autocast."""

from contextlib import AbstractContextManager

import torch
from torch import nn

from open_flamingo.instruction_tuning.config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16, "fp16": torch.float16}
_FROZEN = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
