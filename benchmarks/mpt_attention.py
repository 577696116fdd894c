"""Eager attention, or fused attention with one shared mask: time and memory of the attention of a stack of MPT layers.

`python benchmarks/mpt_attention.py` prints the table of docs/performance.md: forward and backward through the attention
alone, medians, and the bytes that the forward pass keeps for the backward pass. `--layers`, `--width`, `--lengths` and
`--repeats` change the sizes.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MptConfig
from transformers.models.mpt.modeling_mpt import MptModel

from open_flamingo.src.mpt import use_sdpa

HEAD = 128
"""The width of a head in MPT-1B and MPT-7B."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Print the table."""
    args = arguments()
    sys.stdout.write(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.layers} layers of width {args.width}, "
        f"batch {args.batch}, medians of {args.repeats}\n"
        "| tokens, numbers | eager, ms | fused, ms | eager / fused | eager keeps, MiB | fused keeps, MiB | eager / fused |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for length in args.lengths:
        for name, dtype in DTYPES.items():
            eager = attention_stack(args.layers, args.width, dtype)
            x = torch.randn(args.batch, length, args.width, dtype=dtype, requires_grad=True)
            plain = measure(eager, x, args.repeats)
            use_sdpa(eager)
            fused = measure(eager, x, args.repeats)
            sys.stdout.write(
                f"| {length}, {name} | {plain[0]:.0f} | {fused[0]:.0f} | {plain[0] / fused[0]:.2f} "
                f"| {plain[1]:.1f} | {fused[1]:.1f} | {plain[1] / fused[1]:.1f} |\n"
            )
            sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """The sizes to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=2048, help=f"a multiple of {HEAD}")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def attention_stack(layers: int, width: int, dtype: torch.dtype) -> MptModel:
    """A frozen stack of MPT layers without their MLPs, as where only what is between the layers trains."""
    config = MptConfig(d_model=width, n_layers=layers, n_heads=width // HEAD, max_seq_len=2048, vocab_size=8)
    model: Any = MptModel(config)
    model.to(dtype).requires_grad_(False).train()
    for block in model.blocks:
        block.ffn = Skip()
    return model


class Skip(nn.Module):
    """In place of an MLP: nothing is added to the residual."""

    def forward(self, _x: Tensor, residual: Tensor) -> Tensor:
        """The residual (b, t, d)."""
        return residual


def measure(model: MptModel, x: Tensor, repeats: int) -> tuple[float, float]:
    """The median time of a forward and backward pass in milliseconds, and the MiB kept between the two."""
    kept = mebibytes_kept(model, x)
    times = [milliseconds(model, x) for _ in range(repeats + 1)]
    return statistics.median(times[1:]), kept


def milliseconds(model: MptModel, x: Tensor) -> float:
    """The time of one forward and backward pass."""
    started = time.perf_counter()
    model(inputs_embeds=x).last_hidden_state.sum().backward()
    return 1000 * (time.perf_counter() - started)


def mebibytes_kept(model: MptModel, x: Tensor) -> float:
    """What the forward pass keeps for the backward pass, without the weights: each storage once, however often kept."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(inputs_embeds=x)
    del out
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights) / 2**20


if __name__ == "__main__":
    main()
