"""Which parameters train: everything is frozen, then LoRA is added, then parts are unfrozen. One place decides."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.lora import PARTS, LoraConfig, is_lora, part_of, targeted
from open_flamingo.src.trained_rows import TrainedRows
from open_flamingo.src.weights import add_lora, load_adapter, plain_name


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """The content of a tuning config JSON."""

    lora: bool
    """Add LoRA adapters."""
    from_pretrained: str | bool = False
    """A PEFT folder to start the adapters from, or false."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Ends of the dotted names of the modules that get an adapter, in the language model and its gated blocks.

    Those of one part alone have its name before them: "lm:q_proj", "xattn:to_q", "perceiver:to_kv".
    """
    lora_r: int = 0
    lora_alpha: int = 0
    lora_dropout: float = 0.0
    unfrozen: list[str]
    """Parameters to train whole, outside the vision tower, by fragments of names and patterns (see `matches`)."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Rates in place of the run's, by "lm", "xattn", "perceiver", "lora", fragment or pattern; the first match counts."""

    def __post_init__(self) -> None:
        for key, (is_right, what) in CHECKS.items():
            value = getattr(self, key)
            if not is_right(value):
                raise ValueError(f"{key} must be {what}, not {value!r}")
        for target in self.lora_target_modules:
            part, colon, end = target.rpartition(":")
            if not end or (colon and part not in PARTS):
                raise ValueError(
                    f"lora_target_modules has {target!r}: write a module's name, or PART:NAME with one of {', '.join(PARTS)}"
                )
        for key, rate in self.learning_rates.items():
            if not (_is_number(rate) and 0 < rate < math.inf):
                raise ValueError(f"learning_rates {key!r} must be a positive number, not {rate!r}")
        if self.lora and not self.from_pretrained:
            for key in ("lora_target_modules", "lora_r", "lora_alpha"):
                if not getattr(self, key):
                    raise ValueError(f"with lora true, {key} must not be {getattr(self, key)!r}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # not isinstance: true and false are integers to Python


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lora": (lambda value: isinstance(value, bool), "true or false"),
    "from_pretrained": (
        lambda value: value is False or (isinstance(value, str) and value != ""),
        "a PEFT folder or false",
    ),
    "lora_target_modules": (_are_strings, "a list of strings"),
    "lora_r": (_is_count, "a whole number from 0"),
    "lora_alpha": (_is_count, "a whole number from 0"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "unfrozen": (_are_strings, "a list of strings"),
    "learning_rates": (lambda value: isinstance(value, dict), "an object that maps names to numbers"),
}
"""What each key may hold, and how to say it."""

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
    ValueError where a LoRA target or an entry of `unfrozen` matches nothing, and where a learning rate would be without
    effect.
    """
    config = tuning_config if isinstance(tuning_config, TuningConfig) else read_tuning_config(Path(tuning_config))
    model.requires_grad_(False)
    if config.lora:
        _add_lora(model, config)
    _unfreeze(model, config.unfrozen)
    if not freeze_lm_embeddings:
        _train_new_token_rows(model)
    _refuse_idle_rates(model, config.learning_rates)
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
    present = [target for target in targets if targeted(model, target)]
    for target in targets:
        if target not in present and (target not in PROJECTIONS or not present):
            part = target.rpartition(":")[0]
            where = f"part {part!r}" if part else type(model.lang_encoder).__name__
            raise ValueError(f"LoRA target {target!r} matches no module of {where}")
    return present


def _unfreeze(model: Flamingo, entries: Iterable[str]) -> None:
    # the tower runs without gradients, so a fragment such as "attn" does not mean its parameters
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith("vision_encoder.")}
    for entry in entries:
        matching = [parameter for name, parameter in parameters.items() if matches(entry, name)]
        if not matching:
            raise ValueError(f"unfrozen {entry!r} matches no parameter outside the vision tower")
        for parameter in matching:
            parameter.requires_grad_(True)


def _train_new_token_rows(model: Flamingo) -> None:
    lm = model.lang_encoder
    ids = [model.media_token_id, model.eoc_token_id]
    model.trained_rows = TrainedRows(lm.get_input_embeddings(), lm.get_output_embeddings(), ids)  # type: ignore[operator]


def matches(entry: str, name: str) -> bool:
    """Whether an entry of a tuning config means the parameter `name`.

    Without a `*` it is a fragment, which the name holds as the model spells it. With one it is a pattern of whole dotted
    parts for the parameter or a module above it, in which wrappers need not be spelled (see `weights.plain_name`): `*`
    is any text inside a part, and a part `**` is any number of parts.
    """
    if "*" not in entry:
        return entry in name
    return _begins(plain_name(name).split("."), plain_name(entry).split("."))


def _begins(parts: list[str], pattern: list[str]) -> bool:
    """Whether `pattern` matches the first of the parts, or all of them."""
    if not pattern:
        return True
    first, *rest = pattern
    if first == "**":
        return any(_begins(parts[i:], rest) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], first) and _begins(parts[1:], rest)


def _has_rate(key: str, name: str) -> bool:
    """Whether a key of `learning_rates` means the parameter `name`."""
    if key == "lora":
        return is_lora(name)
    return part_of(name) == key if key in PARTS else matches(key, name)


def _refuse_idle_rates(model: Flamingo, learning_rates: dict[str, float]) -> None:
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for key in learning_rates:
        if not any(_has_rate(key, name) for name, _ in model.named_parameters()):
            raise ValueError(f"learning_rates {key!r} matches no parameter")
        others = [name for name in left if not _has_rate(key, name)]
        if len(others) == len(left):
            raise ValueError(
                f"learning_rates {key!r} is without effect: what it matches is frozen, or has its rate by a key before it"
            )
        left = others


def learning_rate_of(name: str, default: float, learning_rates: dict[str, float]) -> float:
    """The learning rate of one parameter."""
    return next((rate for key, rate in learning_rates.items() if _has_rate(key, name)), default)
