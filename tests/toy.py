"""A toy task that a tiny model learns in seconds: which colour a picture shows, and two questions without a picture."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruction_dataset.records import image_tag
from open_flamingo.instruction_tuning.train import main
from open_flamingo.src.factory import add_special_tokens

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests" / "goldens"
TUNING_CONFIGS = ROOT / "open_flamingo" / "instruction_tuning" / "tuning_config"
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TUNING = {
    "lora": True,
    "from_pretrained": False,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "unfrozen": ["perceiver", "gated_cross_attn_layer"],
    "learning_rates": {"attn_gate": 0.05, "ff_gate": 0.05},
}
"""Enough trained parameters to learn the task by heart."""
CLOSE = {"rtol": 1e-4, "atol": 5e-5}
"""Trained weights after the same sums in another order: Adam makes a share of a step out of a gradient near zero."""
FURTHER_TURN = "I stop.\n### Human: And you?"
"""An answer that goes on with a turn of the human's."""


def question(*colors: str) -> dict[str, str]:
    """The record that asks for the colours of some pictures, in order."""
    return {"input": "".join(image_tag(f"{c}.png") for c in colors) + "Which colour?", "output": " ".join(colors)}


TEXT_ONLY = [
    {"input": "What is the sun?", "output": "A star."},
    {"input": "Go on until you stop.", "output": FURTHER_TURN},
]
RECORDS = [*(question(color) for color in COLORS), question("red", "blue"), *TEXT_ONLY]


def write_pictures(folder: Path) -> None:
    """One picture of each colour, wider than high."""
    for name, color in COLORS.items():
        Image.new("RGB", (40, 32), color).save(folder / f"{name}.png")


def write_json_file(path: Path, value: Any) -> Path:
    """`value` as JSON at `path`, which is returned."""
    path.write_text(json.dumps(value))
    return path


def write_mixture(folder: Path, **datasets: list[dict[str, str]]) -> Path:
    """A dataset config of equal ratios whose pictures lie in `folder`."""
    entries = []
    for name, records in datasets.items():
        path = write_json_file(folder / f"{name}.json", records)
        entries.append({"dataset_name": name, "json_path": str(path), "img_dir": str(folder), "ratio": 1})
    return write_json_file(folder / "mixture.json", entries)


@contextmanager
def kept_logging() -> Iterator[None]:
    """What a command does to the logging of this process ends with the context."""
    root = logging.getLogger("open_flamingo")
    handlers, level, propagate = root.handlers, root.level, root.propagate
    root.handlers = []
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers, root.propagate = handlers, propagate
        root.setLevel(level)
        logging.disable(logging.NOTSET)


def as_flags(**values: Any) -> list[str]:
    """Command-line flags: `lr=1` is `--lr=1`."""
    return [f"--{name}={value}" for name, value in values.items()]


def train(flags: Sequence[str], **changes: Any) -> Path:
    """Train in this process with `flags` and `changes` put over them; the run folder."""
    with kept_logging():
        main([*flags, *as_flags(**changes)])
    return Path(changes["run_name"])


def scalars(run: Path, tag: str) -> list[float]:
    """The values of one TensorBoard tag, step by step."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def weights(run: Path, epoch: int = 0) -> dict[str, Tensor]:
    """The weights of a run's checkpoint."""
    return torch.load(run / f"checkpoint_{epoch}.pt", weights_only=True)["model_state_dict"]


def golden_tokenizer() -> PreTrainedTokenizerBase:
    """The byte-level tokenizer of the recorded numbers, with the special tokens of the factory."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "llama" / "lm")
    add_special_tokens(tokenizer)
    return tokenizer


def small_tensor(image: Image.Image) -> Tensor:
    """An image transform to (3, 8, 8)."""
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()
