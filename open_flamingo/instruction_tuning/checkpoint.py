"""Checkpoint files, written and read; open_flamingo/src/weights.py matches their names with a model's.

A file holds what a reload needs beside the frozen parts: the trained weights and the embeddings, once each, under the
names of the released OpenFlamingo checkpoints, and the configuration that rebuilds the model around them.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from open_flamingo.instruction_tuning.parallel import whole
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.weights import ROWS, LoadReport, family_of, load_states, saved_name

PARTIAL = ".partial"
"""The end of the name of a checkpoint that is being written."""


def state_to_save(model: Flamingo, also: Iterable[nn.Module] = ()) -> dict[str, Tensor]:
    """The trained weights and the embeddings of `model`, each tensor once and whole, and all of the modules `also`.

    All ranks call this together.
    """
    embeddings = [model.lang_encoder.get_input_embeddings(), model.lang_encoder.get_output_embeddings()]  # type: ignore[operator]
    kept = {id(parameter) for module in (*embeddings, *also) for parameter in module.parameters()}
    return {
        saved_name(name, family_of(model)): _with_rows(model, parameter)
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or id(parameter) in kept) and not name.startswith(ROWS)
    }


def _with_rows(model: Flamingo, parameter: Tensor) -> Tensor:
    """A parameter, whole; in fp32 with the rows that train in their place where it is the embeddings."""
    value, rows = whole(parameter.detach()), model.trained_rows
    if rows is None or parameter is not model.lang_encoder.get_input_embeddings().weight:  # type: ignore[operator]
        return value
    return value.float().index_copy(0, rows.ids, whole(rows.weight.detach()))


def save_checkpoint(path: Path, state: Mapping[str, Tensor], **rest: Any) -> None:
    """Write `state` as `model_state_dict`, and `rest`, to `path`, whole or not at all; ValueError where it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            torch.save({"model_state_dict": dict(state), **rest}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # what PyTorch says of a file that was cut short hides what the system said of it
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ValueError(
            f"checkpoint {path} could not be written ({reason}): what was saved before is as it was"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where the system lets a folder be opened."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a `.pt` or `.safetensors` file, under `model_state_dict` if it is a bare state dict.

    Never runs code of the file. Raises ValueError where it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"checkpoint {path} is a folder: an exported model is loaded whole, by open_flamingo.load(folder)"
        )
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            payload: Any = safetensors.torch.load_file(path)
        else:
            # mapped, not read twice; files from before 2020 cannot be
            payload = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        struct.error,
    ) as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"checkpoint {path} holds Python objects beside tensors: it is not loaded, since that could run code"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint: {reason}") from error
    state = payload.get("model_state_dict", payload) if isinstance(payload, dict) else payload
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}, not a state dict")
    return payload if state is not payload else {"model_state_dict": state}


def load_checkpoints(model: Flamingo, paths: str, *, strict: bool = True) -> LoadReport:
    """Load the weights of comma-separated files into `model`, one over the other, before or after LoRA alike.

    A file that was fine-tuned from others needs them below it: they are loaded first, unless files are listed before it.
    Adapters in a file are added to a model without. Raises ValueError as `read_checkpoints` and `load_states` do.
    """
    return load_payloads(model, read_checkpoints(paths), strict=strict)


def load_payloads(model: Flamingo, payloads: Mapping[str, dict[str, Any]], *, strict: bool = True) -> LoadReport:
    """As `load_checkpoints`, for files read before."""
    states = {file: payload["model_state_dict"] for file, payload in payloads.items()}
    tunings = {file: payload["config"]["tuning"] for file, payload in payloads.items() if "config" in payload}
    alphas = {file: t["lora_alpha"] for file, t in tunings.items() if t and t["lora"] and not t["from_pretrained"]}
    return load_states(model, states, strict=strict, lora_alphas=alphas)


def read_checkpoints(paths: str) -> dict[str, dict[str, Any]]:
    """The contents of comma-separated files, by path, those that the first was fine-tuned from before it."""
    first, *others = split_paths(paths)
    payloads = {str(path): read_checkpoint(path) for path in (first, *others)}
    if bases := payloads[str(first)].get("base_checkpoints"):
        if missing := [base for base in bases if not Path(base).is_file()]:
            raise ValueError(
                f"checkpoint {first} was fine-tuned from {missing[0]}, which is not there: list that file first, as in"
                f" '/new/place/{Path(missing[0]).name},{first}'"
            )
        payloads = {base: read_checkpoint(base) for base in bases} | payloads
    return payloads


def split_paths(paths: str) -> list[Path]:
    """The files of a comma-separated list."""
    return [Path(path.strip()) for path in paths.split(",")]
