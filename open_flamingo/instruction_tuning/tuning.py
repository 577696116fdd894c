"""Which parameters train: everything is frozen, then LoRA is added, then parts are unfrozen. One place decides."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.weights import add_lora, load_adapter


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """The content of a tuning config JSON."""

    lora: bool
    """Add LoRA adapters."""
    from_pretrained: str | bool = False
    """A PEFT folder to start the adapters from, or false."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Ends of the dotted names of the modules that get an adapter, inside the language model."""
    lora_r: int = 0
    lora_alpha: int = 0
    lora_dropout: float = 0.0
    unfrozen: list[str]
    """Parameters whose name holds one of these fragments are trained, outside the vision tower."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of parameters whose name holds a fragment, in place of the run's; the first match counts."""

    def __post_init__(self) -> None:
        for name in ("lora_target_modules", "unfrozen"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name} must be a list of strings, not {value!r}")
        for name, kind in (("lora", bool), ("lora_r", int), ("lora_alpha", int), ("lora_dropout", int | float)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be of type {getattr(kind, '__name__', 'number')}")
        if self.from_pretrained is True or not isinstance(self.from_pretrained, str | bool):
            raise ValueError(f"from_pretrained must be a PEFT folder or false, not {self.from_pretrained!r}")
        if self.lora and not self.from_pretrained and (not self.lora_target_modules or self.lora_r < 1):
            raise ValueError("with lora true, lora_target_modules must name modules and lora_r be at least 1")
        if not isinstance(self.learning_rates, dict) or not all(
            isinstance(rate, int | float) and rate > 0 for rate in self.learning_rates.values()
        ):
            raise ValueError("learning_rates must map name fragments to positive numbers")


PROJECTIONS = {
    *("Wqkv", "out_proj", "up_proj", "down_proj", "gate_proj", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("fc1", "fc2", "fc_in", "fc_out", "qkv_proj", "gate_up_proj"),
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
"""Projections of the language models in use: a tuning config may name those of several families at once."""

LORA_KEYS = ("from_pretrained", "lora_target_modules", "lora_r", "lora_alpha", "lora_dropout")


def read_tuning_config(path: Path) -> TuningConfig:
    """A tuning config file; ValueError naming the file and the key where it is malformed."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"tuning config {path} does not exist") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"tuning config {path}, line {error.lineno}: {error.msg}") from error
    try:
        return parse_tuning_config(raw)
    except ValueError as error:
        raise ValueError(f"tuning config {path}: {error}") from error


def parse_tuning_config(raw: Any) -> TuningConfig:
    """A tuning config from its JSON value; ValueError naming a key that is unknown, missing or wrong."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    known = {f.name for f in fields(TuningConfig)}
    required = {f.name for f in fields(TuningConfig) if f.default is MISSING and f.default_factory is MISSING}
    if raw.get("lora"):
        required.update(LORA_KEYS)
    if unknown := sorted(raw.keys() - known):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if missing := sorted(required - raw.keys()):
        raise ValueError(f"missing key {missing[0]!r}")
    return TuningConfig(**raw)


def prepare_model_for_tuning(
    model: Flamingo, tuning_config: TuningConfig | Path | str, *, freeze_lm_embeddings: bool = True
) -> list[str]:
    """Freeze `model`, add LoRA, unfreeze what the config names; the names of the parameters that train.

    Without `freeze_lm_embeddings` the rows of `<image>` and `<|endofchunk|>` in the input embeddings train too. Raises
    ValueError where a LoRA target or a fragment matches nothing.
    """
    config = tuning_config if isinstance(tuning_config, TuningConfig) else read_tuning_config(Path(tuning_config))
    model.requires_grad_(False)
    if config.lora:
        _add_lora(model, config)
    _unfreeze(model, config.unfrozen)
    if not freeze_lm_embeddings:
        _train_new_token_rows(model)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _add_lora(model: Flamingo, config: TuningConfig) -> None:
    if isinstance(config.from_pretrained, str):
        load_adapter(model, config.from_pretrained)
        return
    lora = LoraConfig(
        target_modules=_present_targets(model, config.lora_target_modules),
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    add_lora(model, lora)


def _present_targets(model: Flamingo, targets: list[str]) -> list[str]:
    """The targets that name a module; the shipped configs also list projections of other families."""
    names = [name for name, _ in model.lang_encoder.named_modules()]
    present = [t for t in targets if any(name == t or name.endswith(f".{t}") for name in names)]
    for target in targets:
        if target not in present and (target not in PROJECTIONS or not present):
            raise ValueError(f"LoRA target {target!r} matches no module of {type(model.lang_encoder).__name__}")
    return present


def _unfreeze(model: Flamingo, fragments: Iterable[str]) -> None:
    # the tower runs without gradients, so a fragment such as "attn" does not mean its parameters
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith("vision_encoder.")}
    for fragment in fragments:
        matching = [parameter for name, parameter in parameters.items() if fragment in name]
        if not matching:
            raise ValueError(f"unfrozen {fragment!r} matches no parameter outside the vision tower")
        for parameter in matching:
            parameter.requires_grad_(True)


def _train_new_token_rows(model: Flamingo) -> None:
    """Let gradients reach two rows of the input embeddings: AdamW without decay leaves the others as they are."""
    weight = model.lang_encoder.get_input_embeddings().weight  # type: ignore[operator]
    weight.requires_grad_(True)
    rows = [model.media_token_id, model.eoc_token_id]

    def keep_rows(grad: Tensor) -> Tensor:
        kept = torch.zeros_like(grad)
        kept[rows] = grad[rows]
        return kept

    weight.register_hook(keep_rows)


def learning_rate_of(name: str, default: float, learning_rates: dict[str, float]) -> float:
    """The learning rate of one parameter."""
    return next((rate for fragment, rate in learning_rates.items() if fragment in name), default)
