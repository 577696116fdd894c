"""Names of parameters, in the model and in checkpoints of every origin: the one place that knows and matches them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor

from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLayer
from open_flamingo.src.lora import (
    BLOCK,
    LoraConfig,
    add_found_lora,
    has_lora,
    is_lora,
    leaves,
    part_of,
    read_adapter,
    set_lora,
    targeted,
)

logger = logging.getLogger(__name__)

WRAPPERS = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer", "decoder_layer"}
"""Parts that activation checkpointing, FSDP, torch.compile, PEFT >= 0.7 and FlamingoLayer put into names."""

HEAD = "lm_head"

HEADS_OF_2023 = {"gpt_neox": "embed_out"}
"""Output heads that transformers has renamed to `lm_head`, by type of language model."""

UNUSED_BUFFERS = ("attention.bias", "attention.masked_bias", "attn.bias", "attn.masked_bias", "rotary_emb.inv_freq")
"""Ends of the names of constants that language models of 2023 stored."""

ROWS = "trained_rows."
"""Parameters that are saved as rows of the embeddings they belong to."""

TEXT_TOWER = "text tower"

SHOWN = 3
"""Names that a message lists."""


@dataclass
class LoadReport:
    """What checkpoints gave a model; `str(report)` sums it up."""

    loaded: dict[str, str] = field(default_factory=dict)
    """Name of each loaded parameter, and the file it came from: the last that held it."""
    absent: list[str] = field(default_factory=list)
    """Parameters in no file, as expected: those of the language model and the vision tower."""
    missing: list[str] = field(default_factory=list)
    """Parameters in no file that are left at their random start."""
    unexpected: dict[str, list[str]] = field(default_factory=dict)
    """By file, the keys that no parameter has."""
    ignored: dict[str, list[str]] = field(default_factory=dict)
    """By file, constants and CLIP's text tower, which the model does without."""
    reshaped: dict[str, tuple[Size, Size]] = field(default_factory=dict)
    """Keys of another shape than their parameter's (file, model): loaded if only dimensions of size 1 differ."""

    def __str__(self) -> str:
        given = Counter(self.loaded.values())
        lines = [f"{source}: {count} tensors loaded" for source, count in given.items()]
        lines.append(f"expected to be absent: {len(self.absent)} tensors of the language model and the vision tower")
        for what, names in self._exceptions():
            if names:
                lines.append(f"{what}: {_listed(names)}")
        return "\n".join(lines)

    def _exceptions(self) -> Iterator[tuple[str, list[str]]]:
        yield "missing", self.missing
        for source, keys in self.unexpected.items():
            yield f"unexpected in {source}", keys
        for source, keys in self.ignored.items():
            yield f"ignored in {source}", keys
        yield "reshaped", [f"{key} {tuple(a)} to {tuple(b)}" for key, (a, b) in self.reshaped.items()]


def plain_name(key: str) -> str:
    """A parameter's name without what wrappers, PEFT and the splice add to it: equal for equal parameters."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    if parts[0] == "module":
        del parts[0]
    if parts[:3] == ["lang_encoder", "base_model", "model"]:
        del parts[1:3]
    if parts[0] == "lang_encoder" and len(parts) > 1 and parts[1] in HEADS_OF_2023.values():
        parts[1] = HEAD
    if len(parts) > 2 and parts[-3].startswith("lora_"):  # lora_A.default.weight: the adapter's name
        del parts[-2]
    return ".".join(parts)


def saved_name(name: str, family: str = "") -> str:
    """The name a parameter has in a checkpoint, which is that of the 2023 code; `family` is the language model's type."""
    old_head = HEADS_OF_2023.get(family)
    if old_head and name.endswith(f".{HEAD}.weight"):
        name = f"{name.removesuffix(f'{HEAD}.weight')}{old_head}.weight"
    return name.replace(".base_layer.", ".")


def family_of(model: Flamingo) -> str:
    """The type of the language model, as transformers calls it."""
    return model.lang_encoder.config.model_type  # type: ignore[union-attr, return-value]


def own_state(model: Flamingo) -> dict[str, Tensor]:
    """What is in no language model: vision tower, resampler and gated blocks, under their saved names."""
    return {
        saved_name(name): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("vision_encoder.", "perceiver.")) or BLOCK in name.split(".")
    }


def load_states(
    model: Flamingo,
    states: Mapping[str, Mapping[str, Tensor]],
    *,
    strict: bool = True,
    lora_alphas: Mapping[str, int] | None = None,
) -> LoadReport:
    """Load state dicts, by the file they come from, one over the other.

    Adapters in a file are added to a part of the model without, frozen, with the alpha that `lora_alphas` has for the
    file, or that of the released models.

    Raises ValueError, and leaves the weights as they were, for NaN or infinite values and, if `strict`, for a file that
    matches nothing, a tensor of another shape, blocks before layers that have none, and for a resampler, gated block,
    adapter or trained embedding that no file holds.
    """
    add_found_lora(model, {file: _lora_ranks(model, state) for file, state in states.items()}, lora_alphas or {})
    adapted = _adapted_parts(key for state in states.values() for key in state)
    embeddings = model.lang_encoder.get_input_embeddings().weight  # type: ignore[operator]
    are_trained = embeddings.requires_grad or model.trained_rows is not None
    trained = {name for name, p in model.named_parameters() if p is embeddings and are_trained}

    def is_required(name: str) -> bool:
        if is_lora(name):
            return part_of(name) in adapted
        return name in trained or name.startswith("perceiver.") or BLOCK in name.split(".")

    return _load(model, states, is_required, strict=strict)


def add_lora(model: Flamingo, config: LoraConfig) -> None:
    """Put adapters on the modules that the targets of `config` mean; weights that a checkpoint brought before stay.

    Raises ValueError where those of a part are of another rank, or of other modules.
    """
    state = {saved_name(name): p.detach() for name, p in model.named_parameters() if is_lora(name)}
    set_lora(model, config, {name for target in config.target_modules or () for name in targeted(model, target)})
    if state:
        adapted = _adapted_parts(state)
        report = _load(
            model, {"loaded before": state}, lambda name: is_lora(name) and part_of(name) in adapted, strict=True
        )
        if report.unexpected:
            raise ValueError(
                f"the LoRA weights loaded before hold {next(iter(report.unexpected.values()))[0]},"
                " which the tuning config does not adapt"
            )


def load_adapter(model: Flamingo, folder: str) -> LoadReport:
    """Put the LoRA adapter of a PEFT folder around the language model; it was trained on the bare one or a spliced one.

    Raises ValueError where the folder cannot be read, or does not fit the language model.
    """
    if has_lora(model.lang_encoder):
        raise ValueError(f"LoRA weights {folder} come before checkpoints: the language model has adapters already")
    config, state = read_adapter(folder)
    states = {folder: {f"lang_encoder.{key}": tensor for key, tensor in state.items()}}
    ranks = _lora_ranks(model, states[folder])
    if not ranks:
        raise ValueError(f"LoRA weights {folder} match no module of {type(model.lang_encoder).__name__}")
    set_lora(model, config, ranks)
    return _load(model, states, lambda name: is_lora(name) and part_of(name) != "perceiver", strict=True)


@dataclass
class _Match:
    """A tensor of a file and the parameter it is for."""

    file: str
    key: str
    value: Tensor
    name: str
    parameter: Tensor


def _load(
    model: Flamingo,
    states: Mapping[str, Mapping[str, Tensor]],
    is_required: Callable[[str], bool],
    *,
    strict: bool,
) -> LoadReport:
    report, family = LoadReport(), family_of(model)
    plan: dict[int, _Match] = {}  # by parameter, not by name: tied parameters have two
    for file, state in states.items():
        matches = [match for match in _matches(model, file, state, report) if _fits(match, report, strict=strict)]
        if strict and not matches:
            example = next(iter(state), "nothing")
            raise ValueError(f"checkpoint {file} matches no parameter of the model (it holds {example!r}, ...)")
        _refuse_contradictions(matches)
        plan |= {id(match.parameter): match for match in matches}
    _refuse_broken(plan.values())
    for name, parameter in model.named_parameters():
        if id(parameter) not in plan and not name.startswith(ROWS):
            (report.missing if is_required(name) else report.absent).append(saved_name(name, family))
    if strict:
        _refuse_gaps(report, _layers_name(model))
    with torch.no_grad():
        for match in plan.values():
            value = match.value.reshape(match.parameter.shape)
            match.parameter.copy_(value)
            if model.trained_rows is not None and match.parameter is model.lang_encoder.get_input_embeddings().weight:  # type: ignore[operator]
                model.trained_rows.take(value)
            report.loaded[saved_name(match.name, family)] = match.file
    logger.info("%s", report)
    if report.unexpected or report.missing:
        logger.warning("some weights found no place, or no value:\n%s", report)
    return report


def _matches(model: Flamingo, file: str, state: Mapping[str, Tensor], report: LoadReport) -> Iterator[_Match]:
    """The tensors of a file that have a parameter or a buffer; the report takes the others."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    targets = {plain_name(name): (name, tensor) for name, tensor in tensors}
    layers = _layers_name(model)
    holds_clip = any(plain_name(key).startswith("vision_encoder.visual.") for key in state)
    for key, value in state.items():
        name = _current_name(plain_name(key), layers, holds_clip=holds_clip)
        if name in targets and isinstance(value, Tensor):
            yield _Match(file, key, value, *targets[name])
        elif name == TEXT_TOWER or name.endswith(UNUSED_BUFFERS):
            report.ignored.setdefault(file, []).append(key)
        else:
            report.unexpected.setdefault(file, []).append(key)


def _current_name(name: str, layers: str, *, holds_clip: bool) -> str:
    """Today's place of a plain name: 2023 registered decoder layers and blocks a second time, and v1 held all of CLIP."""
    parts = name.split(".")
    match parts:
        case ["lang_encoder", "old_decoder_blocks", i, *rest]:
            return ".".join([layers, i, *rest])
        case ["lang_encoder", "gated_cross_attn_layers", i, *rest]:
            return ".".join([layers, i, BLOCK, *rest])
        case ["vision_encoder", "visual", *rest]:
            return ".".join(["vision_encoder", *rest])
        case ["vision_encoder", *_] if holds_clip:
            return TEXT_TOWER
    return name


def _layers_name(model: Flamingo) -> str:
    """The plain name of the list of decoder layers."""
    layer = next(name for name, module in model.named_modules() if isinstance(module, FlamingoLayer))
    return plain_name(layer).rpartition(".")[0]


def _fits(match: _Match, report: LoadReport, *, strict: bool) -> bool:
    has, wants = match.value.shape, match.parameter.shape
    if has == wants:
        return True
    report.reshaped[match.key] = (has, wants)
    if [n for n in has if n != 1] == [n for n in wants if n != 1]:
        return True
    if strict:
        raise ValueError(
            f"checkpoint {match.file}: {match.key} has shape {tuple(has)}, the model's is {tuple(wants)}: is it of"
            " another language model, vision encoder, interval or LoRA rank?"
        )
    return False


def _refuse_contradictions(matches: Iterable[_Match]) -> None:
    seen: dict[int, _Match] = {}
    for match in matches:
        other = seen.setdefault(id(match.parameter), match)
        if other.value.data_ptr() != match.value.data_ptr() and not torch.equal(other.value, match.value):
            raise ValueError(
                f"checkpoint {match.file}: {other.key} and {match.key} are one parameter of the model, but differ"
            )


def _refuse_broken(matches: Iterable[_Match]) -> None:
    for match in matches:
        if not match.value.isfinite().all():
            raise ValueError(f"checkpoint {match.file} is damaged: {match.key} holds NaN or infinite values")


def _refuse_gaps(report: LoadReport, layers: str) -> None:
    for file, keys in report.unexpected.items():
        if blocks := [key for key in keys if BLOCK in key and not is_lora(key)]:
            raise ValueError(f"checkpoint {file} has gated blocks where the model has none: {_reason(blocks, layers)}")
    if report.missing:
        raise ValueError(
            f"no checkpoint holds {_listed(report.missing)}: list the one that does before the others, or accept random"
            " weights with load_checkpoints(..., strict=False)"
        )


def _reason(blocks: list[str], layers: str) -> str:
    """Why a file's blocks have no place in a model with these decoder layers."""
    parts = [plain_name(key).split(".") for key in blocks]
    index = next(i for i, part in enumerate(parts[0]) if part.isdigit())
    if (theirs := ".".join(parts[0][:index])) not in (layers, "lang_encoder.gated_cross_attn_layers"):
        return f"it is of another language model, with layers {theirs} in place of {layers}"
    return f"is cross_attn_every_n_layers {1 + min(int(part[index]) for part in parts)}?"


def _adapted_parts(keys: Iterable[str]) -> set[str | None]:
    """The parts of the model that keys of adapters are of."""
    return {part_of(plain_name(key)) for key in keys if is_lora(key)}


def _lora_ranks(model: Flamingo, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The modules of the model that have an adapter in a state dict, and its rank."""
    names = {plain_name(name): name for name in leaves(model)}
    keys = {plain_name(key): key for key in state}
    ranks = {
        name.removesuffix(".lora_A.weight"): state[key].shape[0]
        for name, key in keys.items()
        if name.endswith(".lora_A.weight")
    }
    return {names[name]: rank for name, rank in ranks.items() if name in names}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
