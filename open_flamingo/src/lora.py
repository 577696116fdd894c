"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) around the language model, by PEFT: the only file that imports it."""

import logging
import pickle
from collections.abc import Iterable, Mapping

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn

logger = logging.getLogger(__name__)

RELEASED_ALPHAS = {128: 64, 64: 64}
"""Rank to alpha of the shipped tuning configs, which the released checkpoints were trained with."""

GUANACO_ALPHA = 16
"""Alpha of the Guanaco adapter (rank 64) that the v1 family starts from."""


def has_lora(lang_encoder: nn.Module) -> bool:
    """True once adapters are around the language model."""
    return isinstance(lang_encoder, PeftModel)


def with_lora(lang_encoder: nn.Module, config: LoraConfig) -> PeftModel:
    """The language model with adapters, which train; its other parameters train or not as before."""
    trained = [parameter for parameter in lang_encoder.parameters() if parameter.requires_grad]
    adapted = get_peft_model(lang_encoder, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    return adapted


def without_lora(lang_encoder: nn.Module, *, merge: bool = True) -> nn.Module:
    """The language model without adapters, which are merged into its weights or dropped."""
    if not isinstance(lang_encoder, PeftModel):
        return lang_encoder
    return lang_encoder.merge_and_unload() if merge else lang_encoder.unload()


def lora_from_ranks(lang_encoder: nn.Module, ranks: Mapping[str, int], alpha: int) -> LoraConfig:
    """The adapters of a checkpoint, from the ranks of its modules by name; ValueError where they have several ranks."""
    (rank, *others) = sorted(set(ranks.values()))
    if others:
        raise ValueError(f"the checkpoint's LoRA modules have ranks {rank} to {others[-1]}: give its tuning config")
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=_short_targets(lang_encoder, ranks))


def released_alpha(rank: int, *, is_v1: bool) -> int:
    """The alpha of the released models with adapters of `rank`, since checkpoints of 2023 do not hold it; said in the log."""
    alpha = GUANACO_ALPHA if is_v1 else RELEASED_ALPHAS.get(rank, rank)
    logger.warning(
        "LoRA of rank %d found in a checkpoint that does not say its alpha, which is taken to be %d:"
        " give the tuning config where that is wrong",
        rank,
        alpha,
    )
    return alpha


def _short_targets(lang_encoder: nn.Module, modules: Iterable[str]) -> list[str]:
    """Ends of names that select exactly `modules`, or their whole names."""
    modules = set(modules)
    ends = {_end(name) for name in modules}
    selected = {name for name, _ in lang_encoder.named_modules() if any(name.endswith(f".{end}") for end in ends)}
    return sorted(ends if selected == modules else modules)


def _end(name: str) -> str:
    """The last part of a dotted name, with the one before it where it is a number."""
    *_, before, last = name.split(".")
    return f"{before}.{last}" if last.isdigit() else last


def read_adapter(folder: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and the weights in a PEFT folder, or on the hub; ValueError where it cannot be read."""
    try:
        config = PeftConfig.from_pretrained(folder)
        state = load_peft_weights(folder, device="cpu")
    except (OSError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"LoRA weights {folder}: not a PEFT folder that can be read ({reason})") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"LoRA weights {folder} hold another kind of adapter: {config.peft_type}")
    config.inference_mode = False
    return config, state
