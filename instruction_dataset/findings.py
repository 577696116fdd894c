"""What a check of instruction data finds: kinds of problems, how often each came up and where first, and the figures."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from instruction_dataset.dataset_config import Source

SHOWN = 20
"""Examples kept of each kind; all are counted."""


class Kind(Enum):
    """A kind of problem, the worst first."""

    CONFIG = ("broken config", True)
    FILE = ("unreadable data file", True)
    NO_RECORDS = ("no usable record", True)
    MALFORMED = ("malformed record", True)
    EMPTY_OUTPUT = ("empty output", True)
    IMAGE_TAGS = ("broken image tag", True)
    IMAGE_COUNT = ("images do not match their places", True)
    MISSING = ("missing image", True)
    UNREADABLE = ("unreadable image", True)
    DAMAGED = ("truncated or damaged image", True)
    TOO_HUGE = ("image over Pillow's limit", True)
    TOO_LONG = ("too long, left out", False)
    TOO_MANY_IMAGES = ("too many images, left out", False)
    CUT = ("answer cut", False)
    NONE_USABLE = ("dataset without a usable record", False)
    HUGE = ("huge image", False)
    DUPLICATE = ("duplicate record", False)
    SPECIAL = ("special token in the text", False)

    def __init__(self, title: str, fails: bool) -> None:
        self.title = title
        self.fails = fails
        """Training would end with an error."""


class Findings:
    """The problems of one dataset."""

    def __init__(self) -> None:
        self.counts = Counter[Kind]()
        self.examples: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, message: str) -> None:
        """Count a problem, and keep its message if it is one of the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.examples.setdefault(kind, []).append(printable(message))

    def __iter__(self) -> Iterator[tuple[Kind, int, list[str]]]:
        for kind in Kind:
            if self.counts[kind]:
                yield kind, self.counts[kind], self.examples[kind]

    def total(self, *, fails: bool) -> int:
        """How many errors there are, or how many warnings."""
        return sum(count for kind, count in self.counts.items() if kind.fails is fails)


@dataclass
class Health:
    """What was found in one dataset."""

    source: Source
    findings: Findings = field(default_factory=Findings)
    files: int = 0
    records: int = 0
    """Malformed ones too."""
    usable: int = 0
    pictures: int = 0
    """Distinct image files."""
    formats: Counter[str] = field(default_factory=Counter)
    prompts: Counter[int] = field(default_factory=Counter)
    """How many records have a prompt of each length."""
    answers: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Segment:
    """A stretch of a sample's text."""

    text: str
    supervised: bool = False
    """The model is trained to say it."""
    special: bool = False
    """One special token, not text."""


@dataclass(frozen=True)
class Picture:
    """An image of a sample."""

    path: str
    thumbnail: str | None
    """A data URI; None where the image cannot be shown."""


@dataclass(frozen=True)
class Sample:
    """One record as training sees it."""

    dataset: str
    where: str
    note: str
    segments: list[Segment]
    pictures: list[Picture]


@dataclass(frozen=True)
class Report:
    """All that a check found."""

    path: Path
    config: Findings
    """Problems of no one dataset."""
    datasets: list[Health]
    images: int
    """Distinct image files of all datasets together."""
    samples: list[Sample]
    max_length: int | None
    """None where no tokenizer was given: lengths are of characters then, else of tokens."""
    settings: dict[str, str]
    """The flags that decide what fits."""

    @property
    def findings(self) -> list[Findings]:
        """Those of the config, then of each dataset."""
        return [self.config, *(health.findings for health in self.datasets)]

    def total(self, *, fails: bool) -> int:
        """How many errors there are, or how many warnings."""
        return sum(findings.total(fails=fails) for findings in self.findings)


def printable(text: str) -> str:
    """The text with its control and half characters spelled out: a terminal and UTF-8 take the rest."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table(report: Report) -> Iterator[str]:
    """What was found as lines for a terminal, dataset by dataset."""
    if report.config.counts:
        yield from _entry(str(report.path), report.config)
    for health in report.datasets:
        source = health.source
        files = f"{health.files:,} file{'s' * (health.files != 1)}"
        name = f"{source.name} ({source.path})"
        figures = f"{health.records:,} records in {files}, {health.usable:,} usable, {health.pictures:,} images"
        yield from _entry(printable(f"{name}: {figures}"), health.findings)
    if report.max_length is None:
        yield "How many records are too long for --max_length is not known; give --tokenizer to have tokens counted."
    errors, warnings = report.total(fails=True), report.total(fails=False)
    verdict = "training would fail" if errors else "ready to train"
    yield f"{verdict}: {errors:,} error{'s' * (errors != 1)}, {warnings:,} warning{'s' * (warnings != 1)}"


def _entry(title: str, findings: Findings) -> Iterator[str]:
    yield title
    for kind, count, examples in findings:
        yield f"  {'error' if kind.fails else 'warning':7}  {kind.title:32}  {count:>9,}"
        yield from (f"           {example}" for example in examples)
        if count > len(examples):
            yield f"           ... and {count - len(examples):,} more"
    if not findings.counts:
        yield "  nothing found"
    yield ""
