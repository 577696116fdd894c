"""Export a trained model to one folder without pickles: `python -m open_flamingo.instruction_tuning.export --help`.

The folder holds `language_model/` (a Hugging Face folder: weights with LoRA merged, tokenizer), `vision_encoder/` (config
and image transform for open_clip), `model.safetensors` (vision tower, resampler, gated blocks) and `config.json`. It can
be moved, and `Inferencer(folder)` or `open_flamingo.load(folder)` need nothing else.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch

from open_flamingo.instruction_tuning.build import EXPORT_CONFIG, EXPORT_WEIGHTS, Recipe, Trained, load_trained
from open_flamingo.instruction_tuning.command import flag, parse, run
from open_flamingo.instruction_tuning.config import TrainedConfig
from open_flamingo.instruction_tuning.tracking import log_to_terminal
from open_flamingo.src.flamingo_lm import eject
from open_flamingo.src.lora import merge_lora
from open_flamingo.src.vision import NO_WEIGHTS, save_vision_config, uses_quick_gelu
from open_flamingo.src.weights import own_state

logger = logging.getLogger("open_flamingo.export")

LANGUAGE_MODEL, VISION_ENCODER = "language_model", "vision_encoder"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The export."""

    output_dir: Path = flag("the folder to write; it must not exist")


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the flags say; see `--help`."""
    parts = [TrainedConfig, ExportConfig]
    config, export_config = parse("Export a trained model to one safetensors folder.", parts, argv)
    log_to_terminal(is_main=True)
    refuse_existing(export_config.output_dir)
    export(load_trained(config), export_config.output_dir)
    return 0


def refuse_existing(folder: Path) -> None:
    """ValueError if something is in the way."""
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another --output_dir, or remove it")


def export(trained: Trained, folder: Path) -> None:
    """Write `trained` to `folder`, whole or not at all; its language model is taken apart on the way."""
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        partial.mkdir(parents=True)
        _write(trained, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("exported to %s", folder)


def _write(trained: Trained, folder: Path) -> None:
    model, config = trained.model, trained.config
    save_vision_config(folder / VISION_ENCODER, config.vision_encoder_path, model.vision_encoder)
    merge_lora(model)
    lang_encoder = model.lang_encoder
    state = {name: tensor.contiguous() for name, tensor in own_state(model).items()}
    safetensors.torch.save_file(state, folder / EXPORT_WEIGHTS, metadata={"format": "pt"})
    eject(lang_encoder)
    lang_encoder.save_pretrained(folder / LANGUAGE_MODEL)  # type: ignore[operator]
    trained.tokenizer.save_pretrained(folder / LANGUAGE_MODEL)
    parts = replace(
        config,
        vision_encoder_path=VISION_ENCODER,
        vision_encoder_pretrained=NO_WEIGHTS,
        quick_gelu=uses_quick_gelu(model.vision_encoder),
        lm_path=LANGUAGE_MODEL,
        tokenizer_path=None,
    )
    # relative paths, since the folder may be moved
    recipe = Recipe(parts, None, trained.template).to_json() | {"model": asdict(parts)}
    (folder / EXPORT_CONFIG).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
