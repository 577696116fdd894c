"""One pass over the records of a dataset that stops at no bad one: problems, figures, image files and random samples.

Memory stays flat: what must be remembered of every record is an 8-byte digest and its number.
"""

import json
import random
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

from instruction_dataset.dataset_config import Source
from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from instruction_dataset.findings import Health, Kind
from instruction_dataset.formats import name_of, parse_row
from instruction_dataset.reading import read_rows, source_files
from instruction_dataset.records import Record, split_images

BATCH = 1024
"""Records tokenized together."""
KINDS = {
    Kind.EMPTY_OUTPUT: re.compile(r"field '\w+' is empty|the answer of turn \d+ is empty"),
    Kind.IMAGE_COUNT: re.compile(r"the text has \d+ places for images"),
    Kind.IMAGE_TAGS: re.compile(r"an image (tag|path) "),
}
"""How the messages begin that `parse_row` has for them; all others are of malformed records."""


class Length(NamedTuple):
    """The tokens of one record as it begins a conversation."""

    first_prompt: int
    prompts: int
    answers: int


@dataclass(frozen=True)
class Rules:
    """What records are held against."""

    literals: re.Pattern[str]
    """Special tokens spelled out."""
    max_img: int
    max_length: int
    measure: Callable[[Sequence[Record]], list[Length]] | None
    """Counts tokens; without it lengths are of characters, and how many records are too long is not known."""
    samples: int
    seed: int


class Seen:
    """Which keys came before, by 8-byte digests in an open hash table: 12 to 24 bytes a key, twice that while it grows."""

    def __init__(self) -> None:
        self._digests = array("Q", bytes(8 << 10))
        self._numbers = array("I", bytes(4 << 10))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def first(self, key: str, number: int) -> int:
        """The number that came with this key when it came first: `number` itself where the key is new."""
        digest = int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
        slot = self._slot(digest)
        if not self._digests[slot]:
            self._digests[slot], self._numbers[slot] = digest, number
            self._count += 1
            if self._count * 3 > len(self._digests) * 2:
                self._grow()
            return number
        return self._numbers[slot]

    def _slot(self, digest: int) -> int:
        """Where a digest is, or would be."""
        digests, mask = self._digests, len(self._digests) - 1
        slot = digest & mask
        while (found := digests[slot]) and found != digest:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        digests, numbers = self._digests, self._numbers
        self._digests = array("Q", bytes(16 * len(digests)))
        self._numbers = array("I", bytes(8 * len(digests)))
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                slot = self._slot(digest)
                self._digests[slot], self._numbers[slot] = digest, number


class ImageUse(NamedTuple):
    """An image file, and the record that named it first."""

    dataset: int
    where: str
    path: str


class ImageList:
    """The distinct image files of all datasets, in a file that is gone when the process is."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._file = TemporaryFile("w+", encoding="ascii")  # noqa: SIM115 - this class is the context manager

    def __enter__(self) -> "ImageList":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, use: ImageUse) -> None:
        """Note an image, unless it is known."""
        before = len(self)
        self._seen.first(use.path, before)
        if len(self) > before:
            self._file.write(json.dumps(use) + "\n")

    def __iter__(self) -> Iterator[ImageUse]:
        self._file.seek(0)
        for line in self._file:
            yield ImageUse(*json.loads(line))


@dataclass
class Reservoir:
    """So many of the items offered, each as likely as any other."""

    size: int
    rng: random.Random
    items: list[tuple[str, Record]] = field(default_factory=list)
    offered: int = 0

    def offer(self, where: str, record: Record) -> None:
        """Keep an item, perhaps in place of another."""
        self.offered += 1
        if len(self.items) < self.size:
            self.items.append((where, record))
        elif (place := int(self.rng.random() * self.offered)) < self.size:
            self.items[place] = (where, record)


class Scan:
    """The pass over one dataset."""

    def __init__(self, source: Source, number: int, rules: Rules, images: ImageList) -> None:
        """`number` is the dataset's, which images are noted with."""
        self.health = Health(source)
        self.number = number
        self.rules = rules
        self.image_list = images
        self.seen, self.seen_images = Seen(), Seen()
        self.starts: list[tuple[Path, int]] = []
        """Each file, and how many records come before it."""
        self.reservoir = Reservoir(rules.samples, random.Random(f"{rules.seed}-{source.name}"))

    def run(self) -> None:
        """Read everything."""
        findings, source = self.health.findings, self.health.source
        try:
            files = source_files(source.path)
        except ValueError as error:
            findings.add(Kind.FILE, str(error))
            return
        self.health.files = len(files)
        records = self._records(files)
        with tqdm(desc=f"reading {source.name}", unit=" records", unit_scale=True, disable=None) as bar:
            while batch := list(islice(records, BATCH)):
                self._fit(batch)
                bar.update(len(batch))
        if not self.health.records and not findings.counts[Kind.FILE]:
            findings.add(Kind.FILE, f"{source.path} holds no records; put some in or leave it out")

    def _records(self, files: list[Path]) -> Iterator[tuple[str, Record]]:
        """The records that are well formed; what is wrong with the others is noted."""
        health = self.health
        for file in files:
            self.starts.append((file, health.records))
            try:
                for number, raw in enumerate(read_rows(file), start=1):
                    where = f"{file}, record {number}"
                    health.records += 1
                    try:
                        record = parse_row(raw)
                        self._look(where, record)
                    except ValueError as error:
                        health.findings.add(_kind(str(error)), f"{where}: {error}")
                        continue
                    health.formats[name_of(raw)] += 1
                    yield where, record
            except ValueError as error:
                health.findings.add(Kind.FILE, f"{error}; what follows in this file was not checked")

    def _look(self, where: str, record: Record) -> None:
        """Check a record by itself; ValueError for a broken image tag."""
        health, count, letters = self.health, 0, 0
        texts: list[str] = []
        for text, answer in record.turns:
            pieces, paths = split_images(text)
            count += len(paths)
            letters += sum(map(len, pieces))
            # in an instruction they part the turns before it
            texts += [piece.replace(NEXT_TURN, "").replace(ASSISTANT, "") for piece in pieces]
            texts.append(answer)
            for path in paths:
                self._note_image(where, str(Path(health.source.img_dir, path)))
        self._find_literals(where, texts)
        health.images[count] += 1
        if self.rules.measure is None:
            health.prompts[letters] += 1
            health.answers[sum(len(answer) for _, answer in record.turns)] += 1
        if (first := self.seen.first(repr(record.turns), health.records - 1)) != health.records - 1:
            health.findings.add(Kind.DUPLICATE, f"{where}: the same as {self._place(first)}; keep one of them")
        self.reservoir.offer(where, record)

    def _note_image(self, where: str, path: str) -> None:
        count = self.health.pictures
        self.seen_images.first(path, count)
        if len(self.seen_images) > count:
            self.health.pictures += 1
            self.image_list.add(ImageUse(self.number, where, path))

    def _find_literals(self, where: str, texts: list[str]) -> None:
        """Special tokens spelled out in what a record says."""
        found = dict.fromkeys(token for text in texts for token in self.rules.literals.findall(text))
        if found:
            spelled = ", ".join(map(repr, found))
            advice = "it stays plain text, so take it out unless you mean it"
            self.health.findings.add(Kind.SPECIAL, f"{where}: the text spells {spelled}; {advice}")

    def _fit(self, batch: list[tuple[str, Record]]) -> None:
        """Which records of a batch training will use."""
        lengths = self._lengths([record for _, record in batch])
        for (where, record), length in zip(batch, lengths, strict=True):
            images = sum(len(split_images(text)[1]) for text, _ in record.turns)
            crowded = images > self.rules.max_img
            if crowded:
                reason = f"{images} images, over --max_img {self.rules.max_img}; raise it, or split the record"
                self.health.findings.add(Kind.TOO_MANY_IMAGES, f"{where}: {reason}")
            fits = length is None or self._fits(where, length)
            self.health.usable += fits and not crowded

    def _lengths(self, records: list[Record]) -> Sequence[Length | None]:
        return self.rules.measure(records) if self.rules.measure else [None] * len(records)

    def _fits(self, where: str, length: Length) -> bool:
        """Whether the prompt leaves room for an answer; both lengths are noted."""
        health, limit = self.health, self.rules.max_length
        health.prompts[length.prompts] += 1
        health.answers[length.answers] += 1
        whole = length.prompts + length.answers
        if length.first_prompt >= limit:
            reason = f"a prompt of {length.first_prompt} tokens leaves no room for an answer in --max_length {limit}"
            health.findings.add(Kind.TOO_LONG, f"{where}: {reason}; raise it, or shorten the input")
            return False
        if whole > limit:
            reason = f"{whole} tokens, of which the last {whole - limit} are cut off by --max_length {limit}"
            health.findings.add(Kind.CUT, f"{where}: {reason}; raise it, or shorten the record")
        return True

    def _place(self, number: int) -> str:
        """The place of the record of this number, counted over all files."""
        file, start = next(entry for entry in reversed(self.starts) if entry[1] <= number)
        return f"record {number - start + 1}" + (f" of {file}" if len(self.starts) > 1 else "")


def _kind(message: str) -> Kind:
    return next((kind for kind, beginning in KINDS.items() if beginning.match(message)), Kind.MALFORMED)
