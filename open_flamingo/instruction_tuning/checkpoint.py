"""Checkpoints: the one place that writes, reads and matches parameter names.

A file holds what a reload needs beside the frozen parts: the trained weights and the embeddings, once each, under the
names of the released OpenFlamingo checkpoints, and the configuration that rebuilds the model around them.
"""

import logging
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from open_flamingo.src.flamingo import Flamingo

logger = logging.getLogger(__name__)

WRAPPERS = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer"}
"""Parts that wrappers (activation checkpointing, FSDP, torch.compile, PEFT >= 0.7) put into names."""


def plain_name(key: str) -> str:
    """A parameter's name without what DDP, other wrappers and PEFT add to it: equal for equal parameters."""
    parts = [part for part in key.removeprefix("module.").split(".") if part not in WRAPPERS]
    if parts[:3] == ["lang_encoder", "base_model", "model"]:
        del parts[1:3]
    return ".".join(parts)


def saved_name(name: str) -> str:
    """The name a parameter has in a checkpoint, which is that of the 2023 code."""
    return name.replace(".base_layer.", ".")


def state_to_save(model: Flamingo, *, with_vision: bool = False) -> dict[str, Tensor]:
    """The trained weights and the embeddings of `model`, each tensor once; `with_vision` the vision tower too."""
    modules = [model.lang_encoder.get_input_embeddings(), model.lang_encoder.get_output_embeddings()]  # type: ignore[operator]
    if with_vision:
        modules.append(model.vision_encoder)
    kept = {id(parameter) for module in modules for parameter in module.parameters()}
    return {
        saved_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or id(parameter) in kept
    }


def save_checkpoint(path: Path, model: Flamingo, *, with_vision: bool = False, **rest: Any) -> None:
    """Write `model_state_dict` (see `state_to_save`) and `rest` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save({"model_state_dict": state_to_save(model, with_vision=with_vision), **rest}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a `.pt` or `.safetensors` file, under `model_state_dict` if it is a bare state dict.

    Never runs code of the file. Raises ValueError where it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            payload: Any = safetensors.torch.load_file(path)
        else:
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        struct.error,
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint: {reason}") from error
    state = payload.get("model_state_dict", payload) if isinstance(payload, dict) else payload
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}, not a state dict")
    return payload if state is not payload else {"model_state_dict": state}


def load_checkpoints(model: Flamingo, paths: str) -> None:
    """Load the weights of comma-separated files into `model`, one over the other, before or after LoRA alike.

    Raises ValueError for a file that matches no parameter, or a tensor of another shape.
    """
    for path in split_paths(paths):
        load_state(model, read_checkpoint(path)["model_state_dict"], str(path))


def split_paths(paths: str) -> Iterator[Path]:
    """The files of a comma-separated list."""
    return (Path(path.strip()) for path in paths.split(","))


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy what `state` holds into the parameters and buffers of the same plain name."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    own = {plain_name(name): tensor for name, tensor in tensors}
    known = {key: own[plain_name(key)] for key in state if plain_name(key) in own}
    if not known:
        example = next(iter(state), "nothing")
        raise ValueError(f"checkpoint {source} matches no parameter of the model (it holds {example!r}, ...)")
    for key, parameter in known.items():
        if parameter.shape != state[key].shape:
            raise ValueError(
                f"checkpoint {source}: {key} has shape {tuple(state[key].shape)}, the model's is"
                f" {tuple(parameter.shape)}: is it of another language model, vision encoder or interval?"
            )
    with torch.no_grad():
        for key, parameter in known.items():
            parameter.copy_(state[key])
    logger.info("%s: %d tensors loaded", source, len(known))
    if unknown := [key for key in state if key not in known]:
        logger.warning("%s: %d tensors match no parameter: %s", source, len(unknown), ", ".join(unknown))
