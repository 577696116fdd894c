"""Which attention kernel trains faster on this machine: the fused one, or plain matrix products?

`python benchmarks/attention_kernels.py` prints the table of docs/performance.md: forward and backward, bf16, medians.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

REPEATS = 7
SHAPES = {
    "a batch of short questions": (16, 9, 20, 20),
    "128 tokens": (4, 9, 128, 128),
    "512 tokens": (2, 9, 512, 512),
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
        times = [milliseconds(shape, backend) for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)]
        sys.stdout.write(f"| {', '.join(map(str, shape))} ({name}) | {times[0]:.1f} | {times[1]:.1f} |\n")


def milliseconds(shape: tuple[int, int, int, int], backend: SDPBackend) -> float:
    """The median time of one forward and backward pass by `backend`."""
    batch, heads, queries, keys = shape
    q = torch.randn(batch, heads, queries, 64, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool).tril() if queries == keys else None
    with sdpa_kernel(backend):
        times = [once(q, k, v, mask) for _ in range(REPEATS + 2)]
    return statistics.median(times[2:])


def once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> float:
    """The time of one forward and backward pass, in milliseconds."""
    started = time.perf_counter()
    F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
