"""Multi-turn augmentation: further records appended as turns fill a sample up (Polite Flamingo, arXiv:2307.01003).

Which records is decided by their lengths and numbers of images alone, so that no text is tokenized to choose.
"""

from collections.abc import Callable, Sequence
from typing import Literal

PackingMode = Literal["fill", "fit"]
Choose = Callable[[int, int, Sequence[int], Sequence[int]], list[int]]


def fill(room: int, slots: int, lengths: Sequence[int], images: Sequence[int]) -> list[int]:
    """As in 2023: the records as they come, until `room` tokens are full or the images of the next exceed `slots`.

    The last one may be longer than what is left: the caller cuts it.
    """
    chosen: list[int] = []
    for i, (length, count) in enumerate(zip(lengths, images, strict=True)):
        if room <= 0 or count > slots:
            break
        chosen.append(i)
        room, slots = room - length, slots - count
    return chosen


def fit(room: int, slots: int, lengths: Sequence[int], images: Sequence[int]) -> list[int]:
    """Those that fill most of `room` tokens together, whole, with at most `slots` images; in the order they come.

    An exact knapsack: bit n of `reached[s]` says that some records with s images have n tokens.
    """
    if room <= 0:
        return []
    within = (1 << (room + 1)) - 1
    reached = [1] + [0] * max(slots, 0)
    before: list[list[int]] = []
    for length, count in zip(lengths, images, strict=True):
        before.append(reached)
        shifted = [(reached[s - count] << length) & within if s >= count else 0 for s in range(len(reached))]
        reached = [old | new for old, new in zip(reached, shifted, strict=True)]
    total, s = max((bits.bit_length() - 1, -s) for s, bits in enumerate(reached))
    s = -s
    chosen = []
    for i in range(len(lengths) - 1, -1, -1):
        if not before[i][s] >> total & 1:
            chosen.append(i)
            total, s = total - lengths[i], s - images[i]
    return chosen[::-1]


PACKING: dict[PackingMode, Choose] = {"fill": fill, "fit": fit}
