"""The memory that `--dry_run` plans, against the memory that training takes: three sizes, fp32 and bf16, on a CPU.

`python benchmarks/memory.py` prints the table of docs/performance.md. Measured is the growth of a process's peak resident
memory (VmHWM of Linux), from when all libraries are imported to the end of a few steps of training on the largest batch,
once with glibc giving every larger block back at once, and once as glibc comes: then blocks of up to 32 MiB lie in a heap
whose gaps stay taken.
`--json FILE` writes the numbers; `--sizes` and `--precisions` choose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from open_flamingo.instruction_tuning.build import build_model
from open_flamingo.instruction_tuning.config import ModelConfig, OptimConfig
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.memory import estimate, largest_batch
from open_flamingo.instruction_tuning.trainer import make_trainer, train_step
from open_flamingo.instruction_tuning.tuning import parse_tuning_config, prepare_model_for_tuning

CPU = torch.device("cpu")
STEPS = 3
"""AdamW makes its state at the end of the first."""
IMAGES = 2
TUNING = {
    "lora": True,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "from_pretrained": False,
    "unfrozen": ["perceiver", "gated_cross_attn_layer"],
}
MIB = 2**20
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}
"""What makes glibc map blocks from 1 MiB on, each by itself."""


@dataclass(frozen=True)
class Size:
    """A language model of LLaMA's kind with a tower beside it, and the batch to train on."""

    width: int
    layers: int
    batch_size: int
    max_length: int
    gradient_checkpointing: bool = False


SIZES = {
    "small": Size(256, 6, 8, 512),
    "middle": Size(576, 12, 4, 512),
    "large": Size(960, 16, 2, 512),
    "large, checkpointing": Size(960, 16, 4, 512, gradient_checkpointing=True),
}


def main() -> None:
    """Print the table; as `--child`, do the training or the planning of one row and print its bytes."""
    args = arguments()
    if args.child:
        work, folder, size, precision = args.child
        value = {"train": trained_bytes, "plan": planned_bytes}[work](Path(folder), SIZES[size], precision)
        sys.stdout.write(f"{value}\n")
        return
    sys.stdout.write(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
        "| size | precision | planned, MiB | measured, MiB | planned / measured | with glibc's heap, MiB | planned / that |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    rows = []
    for name in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_parts(Path(folder), SIZES[name])
            for precision in args.precisions:
                rows.append(measured(folder, name, precision))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(folder: str, name: str, precision: str) -> dict[str, Any]:
    """One row, printed; each number comes from a process of its own."""
    row = (folder, name, precision)
    plan, peak, heap = child("plan", *row), child("train", *row, env=MAPPED), child("train", *row)
    sizes = f"{plan / MIB:.0f} | {peak / MIB:.0f} | {plan / peak:.3f} | {heap / MIB:.0f} | {plan / heap:.3f}"
    sys.stdout.write(f"| {name} | {precision} | {sizes} |\n")
    sys.stdout.flush()
    about = {"size": name, **asdict(SIZES[name]), "precision": precision}
    return about | {"planned": plan, "measured": peak, "measured_with_heap": heap}


def child(*args: str, env: Mapping[str, str] | None = None) -> int:
    """What a process of this script prints."""
    command = [sys.executable, __file__, "--child", *args]
    environment = os.environ | dict(env or {})
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def write_parts(folder: Path, size: Size) -> None:
    """A random language model with a tokenizer of 32,000 words, and the config of a tower of 12 layers."""
    words = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 32000)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), unk_token="<unk>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(folder / "lm")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64 or 1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    tower = {"image_size": 224, "layers": 12, "width": 384, "head_width": 64, "patch_size": 16}
    text = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    about = {"embed_dim": 64, "vision_cfg": tower, "text_cfg": text}
    (folder / "memory-vit.json").write_text(json.dumps(about), encoding="utf-8")


def configs(folder: Path, size: Size, precision: Any) -> tuple[ModelConfig, OptimConfig]:
    """The flags of a row."""
    model = ModelConfig(
        vision_encoder_path=str(folder / "memory-vit.json"),
        vision_encoder_pretrained="none",
        lm_path=str(folder / "lm"),
        cross_attn_every_n_layers=2,
        offline=True,
    )
    return model, OptimConfig(
        tuning_config=Path("none"),
        precision=precision,
        batch_size=size.batch_size,
        gradient_checkpointing=size.gradient_checkpointing,
    )


def planned_bytes(folder: Path, size: Size, precision: str) -> int:
    """The peak that the plan tells."""
    config, optim = configs(folder, size, precision)
    with torch.device("meta"):
        model, _, _ = build_model(config, optim.precision, load_weights=False)
        prepare_model_for_tuning(model, parse_tuning_config(TUNING), freeze_lm_embeddings=False)
    trainer = make_trainer(model, optim, {}, STEPS, Ranks(0, 1, torch.device("meta")))
    return estimate(trainer, batch_of(model, size), Ranks(0, 1, CPU)).peak


def trained_bytes(folder: Path, size: Size, precision: str) -> int:
    """The growth of this process's peak memory by building a model and training it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = status("VmRSS")
    config, optim = configs(folder, size, precision)
    model, _, _ = build_model(config, optim.precision)
    prepare_model_for_tuning(model, parse_tuning_config(TUNING), freeze_lm_embeddings=False)
    trainer = make_trainer(model, optim, {}, STEPS, Ranks(0, 1, CPU))
    batch = batch_of(model, size)
    batch.images = torch.randn(batch.images.shape)
    for _ in range(STEPS):
        train_step(trainer, [batch])
    return status("VmHWM") - before


def batch_of(model: Any, size: Size) -> Any:
    """The largest batch of a row."""
    return largest_batch(
        model, batch_size=size.batch_size, max_length=size.max_length, max_img=IMAGES, image_shape=(3, 224, 224)
    )


def status(name: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


if __name__ == "__main__":
    main()
