"""Which records make an epoch: a pure index map from (seed, epoch), the same on every rank."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SamplingMode = Literal["ratio", "sqrt"]


@dataclass(frozen=True)
class Pool:
    """The records of an epoch, in its order, six bytes each: of which dataset, and which there."""

    datasets: np.ndarray
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self.datasets[index]), int(self.records[index])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.datasets.tolist(), self.records.tolist(), strict=True)

    def head(self, size: int) -> "Pool":
        """The first `size` records."""
        return Pool(self.datasets[:size], self.records[:size])


def sample_counts(sizes: Sequence[int], ratios: Sequence[float], mode: SamplingMode, total: int) -> list[int]:
    """How many of `total` samples each dataset gives: floor(total * p), the remainder to the largest fractions.

    p is proportional to the ratios, or to sqrt(size) (InstructBLIP, arXiv:2305.06500); an empty dataset gives none.
    Raises ValueError where no dataset can give any.
    """
    weights = [math.sqrt(size) if mode == "sqrt" else ratio * (size > 0) for size, ratio in zip(sizes, ratios)]
    if not sum(weights) > 0:
        raise ValueError("no dataset with a positive ratio has a usable record")
    shares = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_fraction = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def draw_epoch(sizes: Sequence[int], counts: Sequence[int], seed: int, epoch: int) -> Pool:
    """The records of one epoch, shuffled; with replacement where a dataset gives more than it has."""
    rng = np.random.default_rng(list(f"{seed}-{epoch}".encode()))
    drawn = [
        rng.integers(size, size=count, dtype=np.uint32) if count > size else _some(rng, size, count)
        for size, count in zip(sizes, counts, strict=True)
    ]
    datasets = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    order = rng.permutation(len(datasets))
    return Pool(datasets[order], np.concatenate(drawn)[order])


def _some(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    return rng.permutation(np.arange(size, dtype=np.uint32))[:count]
