"""Configurations and checkpoints to models: the factory's call, tuning and weights, for training and inference alike."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.checkpoint import load_payloads, read_checkpoints
from open_flamingo.instruction_tuning.config import ModelConfig, Precision, TrainedConfig
from open_flamingo.instruction_tuning.precision import frozen_dtype
from open_flamingo.instruction_tuning.tuning import (
    TuningConfig,
    parse_tuning_config,
    prepare_model_for_tuning,
    read_tuning_config,
)
from open_flamingo.src.factory import create_model_and_transforms
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.vision import NO_WEIGHTS, VISUAL_TOKENS

RELEASED_INTERVAL = 4
"""Decoder layers per gated block in the 9B models: the default for checkpoints that do not say."""

EXPORT_CONFIG, EXPORT_WEIGHTS = "config.json", "model.safetensors"

IS_LOCAL: dict[str, Callable[[Path], bool]] = {
    "vision_encoder_path": Path.exists,
    "vision_encoder_pretrained": Path.is_file,
    "lm_path": Path.is_dir,
    "tokenizer_path": Path.is_dir,
}
"""The fields of a model that name its parts, and whether what they name is a path, not a tag or a name on a hub."""


def build_model(
    config: ModelConfig, precision: Precision, *, load_weights: bool = True
) -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
    """The model of a configuration, before tuning, with its image transform and tokenizer.

    The language model is read in the type its frozen weights have in `precision`, so that it never takes more memory.
    `load_weights` as in `create_model_and_transforms`.
    """
    return create_model_and_transforms(
        config.vision_encoder_path,
        config.vision_encoder_pretrained,
        config.lm_path,
        config.tokenizer_path,
        config.cross_attn_every_n_layers,
        use_local_files=config.offline,
        decoder_layers_attr_name=config.decoder_layers_attr_name,
        freeze_lm_embeddings=config.freeze_lm_embeddings,
        media_attention=config.media_attention,
        quick_gelu=config.quick_gelu,
        lm_dtype=frozen_dtype(precision),
        load_weights=load_weights,
        resampler_depth=config.resampler_depth,
        resampler_latents=config.resampler_latents,
    )


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint carries, so that its path alone rebuilds the model around it."""

    model: ModelConfig
    tuning: TuningConfig | None
    template: str
    """The prompt template it was trained with."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; local paths are made absolute."""
        paths = {name: str(path.resolve()) for name, path in local_parts(self.model).items()}
        return {
            "model": asdict(self.model) | paths,
            "visual_tokens": VISUAL_TOKENS,
            "tuning": self.tuning and asdict(self.tuning),
            "instruction_prompt_template": self.template,
        }


def local_parts(model: ModelConfig) -> dict[str, Path]:
    """The parts of a model that are files or folders here, by the fields that name them."""
    named = {name: getattr(model, name) for name in IS_LOCAL}
    return {
        name: Path(value)
        for name, value in named.items()
        if value not in (None, NO_WEIGHTS) and IS_LOCAL[name](Path(value))
    }


def read_recipe(payload: Mapping[str, Any], source: str) -> Recipe:
    """The recipe in a checkpoint's content; ValueError where it carries none, or one this version does not compute."""
    config = payload.get("config")
    if config is None:
        raise ValueError(
            f"checkpoint {source} does not say which model it belongs to: name the parts (lm_path, tuning_config,"
            " clip_vision_encoder_path, ...)"
        )
    if config.get("visual_tokens", VISUAL_TOKENS) != VISUAL_TOKENS:
        raise ValueError(f"checkpoint {source} was trained on other visual tokens: {config['visual_tokens']}")
    tuning = config["tuning"] and parse_tuning_config(config["tuning"])
    return Recipe(ModelConfig(**config["model"]), tuning, config["instruction_prompt_template"])


@dataclass(frozen=True)
class Trained:
    """A model with its weights, and all that answers need."""

    model: Flamingo
    image_processor: Callable
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    template: str


def load(path: str, precision: Precision = "fp32") -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
    """A model, its image transform and its tokenizer from an exported folder or a training checkpoint."""
    trained = load_trained(TrainedConfig(checkpoint_paths=path, precision=precision))
    return trained.model, trained.image_processor, trained.tokenizer


def load_trained(config: TrainedConfig) -> Trained:
    """The model that checkpoints or an exported folder describe, with what `config` names put over it, and their weights."""
    payloads = _read(config.checkpoint_paths)
    recipe = _recipe(payloads, config)
    model, image_processor, tokenizer = build_model(recipe.model, config.precision)
    if recipe.tuning is not None:
        # rates mean what trains, such as the embeddings of new tokens, and nothing trains here
        prepare_model_for_tuning(model, replace(recipe.tuning, learning_rates={}))
    model.requires_grad_(False)
    if payloads:
        load_payloads(model, payloads)
    return Trained(model.requires_grad_(False).eval(), image_processor, tokenizer, recipe.model, recipe.template)


def files_of(config: TrainedConfig) -> dict[str, list[Path]]:
    """The files and folders here that `load_trained` reads, by what they are."""
    payloads = _read(config.checkpoint_paths)
    parts = local_parts(_recipe(payloads, config).model).values()
    tuning = [Path(config.tuning_config)] if config.tuning_config else []
    return {"checkpoint files": [Path(path) for path in payloads], "model files": [*parts, *tuning]}


def _read(paths: str | None) -> dict[str, dict[str, Any]]:
    """The contents of checkpoints, or of one exported folder; ValueError for another folder."""
    if not paths:
        return {}
    folder = Path(paths)
    if not (folder / EXPORT_CONFIG).is_file():
        if folder.is_dir():
            raise ValueError(f"{folder} is a folder that `export` did not write: name one, or a checkpoint file")
        return read_checkpoints(paths)
    config = json.loads((folder / EXPORT_CONFIG).read_text(encoding="utf-8"))
    for part in ("lm_path", "vision_encoder_path"):
        config["model"][part] = str(folder / config["model"][part])
    return {paths: {"model_state_dict": safetensors.torch.load_file(folder / EXPORT_WEIGHTS), "config": config}}


def _recipe(payloads: Mapping[str, dict[str, Any]], config: TrainedConfig) -> Recipe:
    """The recipe of the last checkpoint, with what is named put over it; all of it named where there is none."""
    named: dict[str, Any] = {
        f.name: value for f in fields(ModelConfig) if (value := getattr(config, f.name, None)) is not None
    }
    if named.keys() & {"vision_encoder_path", "vision_encoder_pretrained"}:
        named = {"quick_gelu": None} | named  # what was recorded is of another tower
    if config.v1:
        named["media_attention"] = "next"
    tuning = read_tuning_config(Path(config.tuning_config)) if config.tuning_config else None
    source, payload = list(payloads.items())[-1] if payloads else ("", {})
    if "lm_path" in named and "config" not in payload:
        return Recipe(ModelConfig(**{"cross_attn_every_n_layers": RELEASED_INTERVAL} | named), tuning, "guanaco")
    if not payloads:
        raise ValueError("name a checkpoint, or at least a language model (lm_path)")
    recipe = read_recipe(payload, source)
    return replace(recipe, model=replace(recipe.model, **named), tuning=tuning or recipe.tuning)
