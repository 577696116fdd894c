"""The datasets that can be converted: found in the folder of sources, and shown as a table, a page or one by one."""

import importlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from textwrap import wrap

from instruction_dataset import sources
from instruction_dataset.converting import Source

COLUMNS = ("name", "records", "images", "what to download", "from", "licence")
LEAST_WIDTH = 10
"""Characters of a column, however narrow the terminal is."""
GAP = "  "


def find_sources() -> dict[str, Source]:
    """All sources by name: `SOURCES` of every module of the folder whose name does not begin with `_`.

    Raises ValueError for a module without `SOURCES`, and for a name that two modules give.
    """
    found: dict[str, Source] = {}
    homes: dict[str, str] = {}
    for info in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        given: Mapping[str, Source] | None = getattr(importlib.import_module(info.name), "SOURCES", None)
        if given is None:
            raise ValueError(f"{info.name} has no SOURCES; give it one, or begin its name with '_'")
        for name, source in given.items():
            if name in found:
                raise ValueError(f"{info.name} and {homes[name]} both name a source {name!r}; rename one")
            found[name], homes[name] = source, info.name
    return dict(sorted(found.items()))


def pick(name: str, found: Mapping[str, Source]) -> Source:
    """The source of that name; ValueError with the closest names where there is none."""
    if name in found:
        return found[name]
    close = get_close_matches(name.lower().replace("_", "-"), found, n=3, cutoff=0.4)
    close += [known for known in found if name.lower() in known and known not in close][:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "--list names them all"
    raise ValueError(f"there is no source {name!r}; {hint}")


def as_table(found: Mapping[str, Source], width: int | None = None) -> str:
    """The sources as an aligned table; with a width, in characters, long cells are wrapped to fit it."""
    rows = [COLUMNS, *(_cells(name, source) for name, source in found.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    if width is not None:
        widths = _narrowed(widths, width - len(GAP) * (len(widths) - 1))
    return "".join(line for row in rows for line in _lines(row, widths))


def as_markdown(found: Mapping[str, Source]) -> str:
    """The sources as a table of a Markdown page."""
    head = [COLUMNS, ["---"] * len(COLUMNS)]
    rows = [(f"`{name}`", *map(_escaped, _cells(name, source)[1:])) for name, source in found.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in (*head, *rows))


def as_facts(name: str, source: Source) -> str:
    """All that is known of one source, one fact a line, and how to convert it."""
    facts = {
        "download": source.files,
        "from": source.origin,
        "licence": source.licence,
        "records": "unknown" if source.records is None else f"{source.records:,}",
        "images": source.images or "none",
        "splits": ", ".join(source.splits),
        "2023": "its output of 2023 with --as_2023" if source.as_2023 else "",
    }
    lines = [f"{name}\n", *(f"  {key:<8}  {value}\n" for key, value in facts.items() if value)]
    command = f"python -m instruction_dataset.convert {name} --source DIR --output {name}.json"
    return "".join([*lines, f"\n  {command}\n"])


def _cells(name: str, source: Source) -> tuple[str, ...]:
    records = "" if source.records is None else f"{source.records:,}"
    return (name, records, source.images or "none", source.files, source.origin, source.licence)


def _escaped(cell: str) -> str:
    """Text that Markdown shows as it is: no cell ends in it, and no emphasis begins."""
    return re.sub(r"[*|]|(?<!\w)_", r"\\\g<0>", cell)


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """Widths that sum to the room: the widest columns give, down to one common width; a name is never broken."""
    narrow = list(widths)
    while sum(narrow) > room and max(narrow[1:]) > LEAST_WIDTH:
        widest = max(range(1, len(narrow)), key=narrow.__getitem__)
        narrow[widest] -= 1
    return narrow


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row of a table, as many lines as its highest cell needs."""
    cells = [wrap(cell, width, break_on_hyphens=False) or [""] for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    return [
        GAP.join(piece.ljust(width) for piece, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in zip(*padded, strict=True)
    ]
