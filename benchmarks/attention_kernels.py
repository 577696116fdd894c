"""Which attention kernel trains faster on this machine: the fused one, or plain matrix products?

`python benchmarks/attention_kernels.py` prints the table of docs/performance.md: forward and backward, bf16, medians.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from open_flamingo.src.attention import plain_attention

REPEATS = 7
SHAPES = {
    "a batch of short questions": (16, 9, 20, 20),
    "128 tokens": (4, 9, 128, 128),
    "512 tokens": (2, 9, 512, 512),
    "512 tokens, 32 heads": (2, 32, 512, 512),
    "1024 tokens": (1, 9, 1024, 1024),
    "2048 tokens": (1, 9, 2048, 2048),
    "cross-attention": (23, 8, 16, 64),
    "resampler": (23, 8, 64, 113),
}
"""Batch, heads, queries, keys; causal where there are as many keys as queries."""


def main() -> None:
    """Print the table."""
    sys.stdout.write(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    sys.stdout.write(
        "| batch, heads, queries, keys | fused kernel, ms | plain matrix products, ms |\n| --- | --- | --- |\n"
    )
    for name, shape in SHAPES.items():
        times = [milliseconds(shape, kernel) for kernel in (F.scaled_dot_product_attention, plain_attention)]
        sys.stdout.write(f"| {', '.join(map(str, shape))} ({name}) | {times[0]:.1f} | {times[1]:.1f} |\n")


def milliseconds(shape: tuple[int, int, int, int], kernel: Callable[..., Tensor]) -> float:
    """The median time of one forward and backward pass by `kernel`."""
    batch, heads, queries, keys = shape
    q, k, v = (
        torch.randn(batch, length, heads, 64, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for length in (queries, keys, keys)
    )
    times = [once(kernel, q, k, v, is_causal=queries == keys) for _ in range(REPEATS + 2)]
    return statistics.median(times[2:])


def once(kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> float:
    """The time of one forward and backward pass, in milliseconds."""
    started = time.perf_counter()
    kernel(q, k, v, is_causal=is_causal).sum().backward()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
