"""Charts as inline SVG, coloured by the classes `c0`, `c1`, ... of the page they stand in: a ring and a stacked histogram.

By hand: a few rectangles and arcs take the page's own fonts and its light and dark colours, which a plotting library's
output does not.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import pairwise

COLORS = 10
"""Datasets after the tenth start over."""
BINS = 24
FEWEST_BINS = 6
SKEWED = 8
"""A longest value so many times the median asks for a logarithmic axis."""
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 12, 26
STEPS = (1, 2, 5, 10)
FINE_STEPS = (1, 2, 3, 4, 6, 8, 10)


def color(number: int) -> str:
    """The class of a dataset's colour."""
    return f"c{number % COLORS}"


def ring(names: Sequence[str], shares: Sequence[float], label: str) -> str:
    """A ring chart of shares, each of any size, with a label in the middle."""
    total = sum(shares) or 1
    start, arcs = 0.0, []
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        part = share / total
        if part > 0:
            title = f"<title>{escape(name)}: {part:.1%}</title>"
            # of a circle with a circumference of 100 one dash, turned to where the last one ended
            dash = f'stroke-dasharray="{100 * part:.3f} {100 * (1 - part):.3f}" stroke-dashoffset="{25 - start:.3f}"'
            arcs.append(f'<circle class="arc {color(number)}" r="15.9155" cx="21" cy="21" {dash}>{title}</circle>')
        start += 100 * part
    text = f'<text x="21" y="22.4" class="ring-label">{escape(label)}</text>'
    return f'<svg class="ring" viewBox="0 0 42 42" role="img" aria-label="{escape(label)}">{"".join(arcs)}{text}</svg>'


def histogram(series: Sequence[Counter[int]], names: Sequence[str], label: str, limit: int | None = None) -> str:
    """Stacked bars, one stack for each range of values; `limit` is marked by a line where it is in view."""
    merged = sum(series, Counter[int]())
    if not merged:
        return '<p class="nothing">no records</p>'
    log, edges = _edges(merged)
    stacks = [_binned(values, edges) for values in series]
    totals = [sum(column) for column in zip(*stacks, strict=True)]
    top = _round_up(max(totals), FINE_STEPS)
    scale = _Scale(edges, top, log)
    body = [_grid(scale), *_bars(stacks, names, scale), _ticks(scale, edges, log)]
    if limit is not None and edges[0] < limit < edges[-1]:
        x = scale.x(limit)
        body.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="histogram" {frame}>{"".join(body)}</svg>'


def quantile(values: Counter[int], part: float) -> int:
    """The value that `part` of all are not above; 0 where there are none."""
    seen, total = 0, values.total()
    for value in sorted(values):
        seen += values[value]
        if seen >= part * total:
            return value
    return 0


def short(number: float) -> str:
    """A number in a few letters: 950, 1.2k, 3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + letter
    return f"{number:g}"


class _Scale:
    """Values and counts to places on the canvas."""

    def __init__(self, edges: list[int], top: int, log: bool) -> None:
        self.edges, self.top, self.log = edges, top, log

    def x(self, value: float) -> float:
        """From left to right."""
        low, high, value = (math.log(v) if self.log else v for v in (self.edges[0], self.edges[-1], value))
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, count: float) -> float:
        """From the bottom up."""
        return HEIGHT - BOTTOM - count / self.top * (HEIGHT - TOP - BOTTOM)


def _edges(values: Counter[int]) -> tuple[bool, list[int]]:
    """Whether the axis is logarithmic, and the ends of the bins, which hold their lower end but not their upper."""
    low, high = min(values), max(values) + 1
    if high - low > BINS and high > SKEWED * max(quantile(values, 0.5), 1):
        low = max(low, 1)
        return True, sorted({round(low * (high / low) ** (i / BINS)) for i in range(BINS + 1)})
    if low < FEWEST_BINS:
        low, high = 0, max(high, FEWEST_BINS)
    step = _round_up(math.ceil(max(high - low, FEWEST_BINS) / BINS))
    start = low // step * step
    high = max(high, start + FEWEST_BINS * step)
    return False, [*range(start, high, step), start + math.ceil((high - start) / step) * step]


def _binned(values: Counter[int], edges: list[int]) -> list[int]:
    bins = [0] * (len(edges) - 1)
    for value, count in values.items():
        bins[max(bisect_right(edges, value) - 1, 0)] += count
    return bins


def _bars(stacks: list[list[int]], names: Sequence[str], scale: _Scale) -> list[str]:
    bars = []
    for i, (low, high) in enumerate(pairwise(scale.edges)):
        left, right = scale.x(low), scale.x(high)
        gap = min(1.5, (right - left) / 4)
        below, span = 0, f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}"
        for number, stack in enumerate(stacks):
            if not stack[i]:
                continue
            bottom, top = scale.y(below), scale.y(below + stack[i])
            place = f'x="{left:.2f}" y="{top:.2f}" width="{right - left - gap:.2f}" height="{bottom - top:.2f}"'
            title = f"{escape(names[number])}: {stack[i]:,} records of {span}"
            bars.append(f'<rect class="bar {color(number)}" {place}><title>{title}</title></rect>')
            below += stack[i]
    return bars


def _grid(scale: _Scale) -> str:
    lines = []
    for count in sorted({0, scale.top // 2, scale.top}):
        y = scale.y(count)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="count" x="{LEFT - 6}" y="{y + 3.5:.1f}">{short(count)}</text>')
    return "".join(lines)


def _ticks(scale: _Scale, edges: list[int], log: bool) -> str:
    low, high = edges[0], edges[-1]
    if len(edges) <= BINS and edges[-1] - edges[0] == len(edges) - 1:
        every = max(1, len(edges) // 8)
        marks = {value: (scale.x(value) + scale.x(value + 1)) / 2 for value in edges[:-1:every]}
    elif log:
        powers = [step * 10**p for p in range(len(str(high))) for step in STEPS[:-1]]
        marks = {value: scale.x(value) for value in powers if low <= value <= high}
        if len(marks) > BINS // 3:
            marks = {value: x for value, x in marks.items() if str(value)[0] == "1"}
    else:
        step = _round_up(math.ceil((high - low) / 6))
        marks = {value: scale.x(value) for value in range(-(-low // step) * step, high + 1, step)}
    y = HEIGHT - BOTTOM + 16
    return "".join(f'<text class="tick" x="{x:.1f}" y="{y}">{short(value)}</text>' for value, x in marks.items())


def _round_up(number: int, steps: Sequence[int] = STEPS) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = 10 ** (len(str(number)) - 1)
    return next(step * size for step in steps if step * size >= number)
