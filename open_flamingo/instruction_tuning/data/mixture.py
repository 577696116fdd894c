"""Which records make an epoch: a pure index map from (seed, epoch), the same on every rank."""

import math
import random
from typing import Literal

SamplingMode = Literal["ratio", "sqrt"]


def sample_counts(sizes: list[int], ratios: list[float], mode: SamplingMode, total: int) -> list[int]:
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


def draw_epoch(sizes: list[int], counts: list[int], seed: int, epoch: int) -> list[tuple[int, int]]:
    """The (dataset, record) pairs of one epoch, shuffled; with replacement where a dataset gives more than it has."""
    rng = random.Random(f"{seed}-{epoch}")
    pool = []
    for dataset, (size, count) in enumerate(zip(sizes, counts)):
        records = rng.choices(range(size), k=count) if count > size else rng.sample(range(size), count)
        pool += [(dataset, record) for record in records]
    rng.shuffle(pool)
    return pool
