"""Configuration to model: the factory's call, tuning and weights, for training and inference alike."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.config import ModelConfig, Precision
from open_flamingo.instruction_tuning.precision import frozen_dtype
from open_flamingo.instruction_tuning.tuning import TuningConfig, parse_tuning_config
from open_flamingo.src.factory import create_model_and_transforms
from open_flamingo.src.flamingo import Flamingo


def build_model(config: ModelConfig, precision: Precision) -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
    """The model of a configuration, before tuning, with its image transform and tokenizer.

    The language model is read in the type its frozen weights have in `precision`, so that it never takes more memory.
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
        quick_gelu=config.quick_gelu,
        lm_dtype=frozen_dtype(precision),
        resampler_depth=config.resampler_depth,
        resampler_latents=config.resampler_latents,
    )


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint carries, so that its path alone rebuilds the model around it."""

    model: ModelConfig
    tuning: TuningConfig
    template: str
    """The prompt template it was trained with."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; local paths are made absolute."""
        model = {name: _absolute(value) for name, value in asdict(self.model).items()}
        return {"model": model, "tuning": asdict(self.tuning), "instruction_prompt_template": self.template}


def read_recipe(payload: dict[str, Any], source: str) -> Recipe:
    """The recipe in a checkpoint's content; ValueError where it carries none."""
    config = payload.get("config")
    if config is None:
        raise ValueError(
            f"checkpoint {source} does not say which model it belongs to: name the parts (lm_path, tuning_config,"
            " clip_vision_encoder_path, ...)"
        )
    return Recipe(
        ModelConfig(**config["model"]), parse_tuning_config(config["tuning"]), config["instruction_prompt_template"]
    )


def _absolute(value: Any) -> Any:
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value
