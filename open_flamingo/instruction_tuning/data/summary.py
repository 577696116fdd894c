"""What a mixture is made of, as the table that a run logs before it trains."""

from collections.abc import Iterable, Sequence

import numpy as np

from open_flamingo.instruction_tuning.data.loader import InstructionData
from open_flamingo.instruction_tuning.data.tokens import FIRST, IMAGES, PROMPT

HEADER = ("dataset", "records", "drawn", "share", "passes", "images", "prompt", "answer", "left out")
"""Images per record; tokens of a record's first prompt, and of what follows it, on average."""


def mixture_table(data: InstructionData, counts: Sequence[int]) -> str:
    """One line per dataset; `counts` are the records that an epoch draws from each."""
    total = max(sum(counts), 1)
    rows = [HEADER]
    for dataset, tokens, usable, drawn in zip(data.datasets, data.tokens, data.usable, counts, strict=True):
        sizes = tokens.sizes()
        images, prompt, whole = (sizes[:, column].mean() for column in (IMAGES, PROMPT, FIRST))
        rows.append(
            (
                f"{dataset.name} ({', '.join(dataset.records.formats)})",
                f"{len(sizes):,}",
                f"{drawn:,}",
                f"{drawn / total:.1%}",
                f"{drawn / max(len(usable), 1):.2f}",
                f"{images:.2f}",
                f"{prompt:.0f}",
                f"{whole - prompt:.0f}",
                _left_out(data, sizes, len(usable)),
            )
        )
    return "\n".join(_lines(rows))


def _left_out(data: InstructionData, sizes: np.ndarray, usable: int) -> str:
    """How many records are not trained on, and why."""
    if usable == len(sizes):
        return "0"
    images = int((sizes[:, IMAGES] > data.max_img).sum())
    reasons = {f"too long for {data.max_length} tokens": len(sizes) - usable - images}
    reasons[f"more than {data.max_img} images"] = images
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)


def _lines(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *numbers, last in rows:
        cells = [first.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:])), last]
        yield "  ".join(cells)
