"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), by PEFT: the only file that imports it.

They are around the language model and its gated blocks, and in place inside the resampler. Names of modules are those in
a model without adapters.
"""

import copy
import logging
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn

from open_flamingo.src.flamingo import Flamingo

logger = logging.getLogger(__name__)

RELEASED_ALPHAS = {128: 64, 64: 64}
"""Rank to alpha of the shipped tuning configs, which the released checkpoints were trained with."""

GUANACO_ALPHA = 16
"""Alpha of the Guanaco adapter (rank 64) that the v1 family starts from."""

BLOCK = "gated_cross_attn_layer"

PARTS = ("lm", "xattn", "perceiver")
"""What tuning tells apart: the language model's own layers, the gated blocks, the resampler."""

HOSTS = ("lang_encoder", "perceiver")
"""The modules of a Flamingo that adapters are in; the gated blocks are in the first."""


def part_of(name: str) -> str | None:
    """The one of PARTS that a parameter or a module belongs to by its name, or None."""
    if BLOCK in name:
        return "xattn"
    return {"lang_encoder": "lm", "perceiver": "perceiver"}.get(name.partition(".")[0])


def is_lora(name: str) -> bool:
    """True for the name of an adapter's parameter."""
    return ".lora_" in name


def targeted(model: Flamingo, target: str) -> set[str]:
    """The modules that a LoRA target means: "xattn:to_q" in that part, "to_q" in the language model and its blocks."""
    part, _, end = target.rpartition(":")
    parts = (part,) if part else ("lm", "xattn")
    return {name for name in leaves(model) if part_of(name) in parts and name.endswith(f".{end}")}


def leaves(model: Flamingo) -> Iterator[str]:
    """The names of the modules that hold no others, in language model and resampler."""
    for host in HOSTS:
        bare = _bare(getattr(model, host))
        adapters = _adapters(bare)
        inside = tuple(f"{name}." for name in adapters)
        for name, module in bare.named_modules():
            if name in adapters or not (list(module.children()) or name.startswith(inside)):
                yield f"{host}.{name}"


def has_lora(module: nn.Module) -> bool:
    """True once adapters are inside a module."""
    return any(isinstance(m, LoraLayer) for m in module.modules())


def set_lora(model: Flamingo, config: LoraConfig, modules: Iterable[str]) -> None:
    """Put new adapters, which train, on `modules`, in place of all that these modules' parts have.

    Other parts keep their adapters, and other parameters train or not as before.
    """
    modules = set(modules)
    parts = {part_of(name) for name in modules}
    for host in HOSTS:
        if names := {name.removeprefix(f"{host}.") for name in modules if name.startswith(f"{host}.")}:
            bare = _bare(getattr(model, host))
            _unload(bare, [name for name in _adapters(bare) if part_of(f"{host}.{name}") in parts], merge=False)
            own = copy.copy(config)
            own.target_modules = _short_targets(bare, names)
            if host == "lang_encoder" and not has_lora(bare):
                model.lang_encoder = with_lora(bare, own)
            else:
                _add_inside(bare, own)


def with_lora(lang_encoder: nn.Module, config: LoraConfig) -> PeftModel:
    """The language model with adapters, which train; its other parameters train or not as before."""
    lang_encoder.__dict__.pop("peft_config", None)  # of adapters that were there: PEFT would count them
    trained = [parameter for parameter in lang_encoder.parameters() if parameter.requires_grad]
    adapted = get_peft_model(lang_encoder, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    return adapted


def merge_lora(model: Flamingo) -> None:
    """Merge all adapters into the weights they are on, in place."""
    if isinstance(model.lang_encoder, PeftModel):
        model.lang_encoder = model.lang_encoder.merge_and_unload()
    _unload(model.perceiver, _adapters(model.perceiver), merge=True)


def add_found_lora(model: Flamingo, ranks: Mapping[str, Mapping[str, int]], alphas: Mapping[str, int]) -> None:
    """Add the adapters that files hold to the parts that have none, frozen.

    `ranks` are by file and module, `alphas` by file; where no file says it, alpha is that of the released models. Raises
    ValueError where a part has several ranks.
    """
    here = {id(parameter) for parameter in model.parameters()}
    adapted = {part_of(f"{host}.{name}") for host in HOSTS for name in _adapters(_bare(getattr(model, host)))}
    kinds: dict[tuple[int, int | None], set[str]] = defaultdict(set)  # modules by rank and alpha
    for part in PARTS:
        found = {name: rank for of_file in ranks.values() for name, rank in of_file.items() if part_of(name) == part}
        if found and part not in adapted:
            holders = [file for file, of_file in ranks.items() if of_file.keys() & found.keys() and file in alphas]
            kinds[_one_rank(found), alphas[holders[-1]] if holders else None].update(found)
    for (rank, known), modules in kinds.items():
        alpha = known or released_alpha(rank, is_v1=model.media_attention == "next")
        set_lora(model, LoraConfig(r=rank, lora_alpha=alpha), modules)
    for name, parameter in model.named_parameters():
        if is_lora(name) and id(parameter) not in here:
            parameter.requires_grad_(False)


def _one_rank(ranks: Mapping[str, int]) -> int:
    (rank, *others) = sorted(set(ranks.values()))
    if others:
        raise ValueError(f"the checkpoint's LoRA modules have ranks {rank} to {others[-1]}: give its tuning config")
    return rank


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


def _bare(host: nn.Module) -> nn.Module:
    """A host without PEFT's wrapper, but with its adapters."""
    return host.get_base_model() if isinstance(host, PeftModel) else host


def _adapters(bare: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in bare.named_modules() if isinstance(module, LoraLayer)}


def _add_inside(host: nn.Module, config: LoraConfig) -> None:
    """As `with_lora`, in place."""
    others = host.__dict__.pop("peft_config", None)  # of another part's adapters: PEFT would overwrite it
    before = [(parameter, parameter.requires_grad) for parameter in host.parameters()]
    inject_adapter_in_model(config, host)
    for parameter, requires_grad in before:
        parameter.requires_grad_(requires_grad)
    host.__dict__["peft_config"] = others or host.__dict__["peft_config"]


def _unload(bare: nn.Module, names: Iterable[str], *, merge: bool) -> None:
    """Put the modules back that adapters are on, with these merged or dropped."""
    for name in names:
        layer: Any = bare.get_submodule(name)
        if merge:
            layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(bare.get_submodule(parent), last, layer.get_base_layer())
    if not has_lora(bare):
        bare.__dict__.pop("peft_config", None)


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
