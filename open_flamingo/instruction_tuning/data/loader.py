"""Datasets to samples: every choice depends on (seed, epoch, sample index) alone, not on workers, ranks or restarts."""

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from open_flamingo.instruction_tuning.data import formats
from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn, TurnTokenizer
from open_flamingo.instruction_tuning.data.images import load_images
from open_flamingo.instruction_tuning.data.mixture import Pool, SamplingMode, draw_epoch, sample_counts
from open_flamingo.instruction_tuning.data.packing import PACKING, PackingMode
from open_flamingo.instruction_tuning.data.tokens import FIRST, FURTHER, IMAGES, TokenStore, fits, open_tokens

GIVE_UP = 100
"""Samples in a row whose images cannot be read before a run that skips them is ended."""


@dataclass(frozen=True)
class Piece:
    """A record in a packed conversation."""

    dataset: int
    record: int
    end: int
    """Where its tokens end, before the conversation is cut."""


@dataclass
class Sample:
    """One packed conversation and its images, each (C, H, W)."""

    conversation: Conversation
    images: list[Tensor]
    pieces: list[Piece] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What was wrong with the samples that this one takes the place of."""

    @property
    def datasets(self) -> list[int]:
        """The dataset of each token."""
        numbers: list[int] = []
        for piece in self.pieces:
            numbers += [piece.dataset] * (piece.end - len(numbers))
        return numbers[: len(self.conversation.ids)]


class InstructionData:
    """The usable records of a mixture, and how they become samples."""

    def __init__(  # noqa: PLR0913 - what there is, then the limits of a sample
        self,
        datasets: list[formats.Dataset],
        tokenizer: TurnTokenizer,
        transform: Callable,
        *,
        max_length: int,
        max_img: int,
        multiturn_augmentation: int,
        seed: int,
        packing: PackingMode = "fill",
        skip_bad_images: bool = False,
        augmented: bool = True,
        cache: Path | None = None,
        quiet: bool = True,
    ) -> None:
        """`skip_bad_images` puts another sample in the place of one whose image cannot be read; `augmented` as in training."""
        self.datasets = datasets
        self.tokenizer = tokenizer
        self.transform = transform
        self.max_length = max_length
        self.max_img = max_img
        self.multiturn_augmentation = multiturn_augmentation
        self.seed = seed
        self.packing = packing
        self.skip_bad_images = skip_bad_images
        self.augmented = augmented
        self.quiet = quiet
        self.image_shape = tuple(transform(Image.new("RGB", (1, 1))).shape)
        self.tokens = [open_tokens(dataset.records, tokenizer, cache, quiet=quiet) for dataset in datasets]
        self.usable: list[range | np.ndarray] = [range(len(tokens)) for tokens in self.tokens]

    def check(self) -> None:
        """Leave out the records that cannot be trained on; ValueError for a missing image, unless those are skipped."""
        if not self.skip_bad_images:
            for dataset, tokens in zip(self.datasets, self.tokens, strict=True):
                refuse_missing_images(dataset, tokens, quiet=self.quiet)
        fitting = [np.flatnonzero(self.fits(tokens.sizes())).astype(np.uint32) for tokens in self.tokens]
        self.usable = [
            numbers if len(numbers) < len(tokens) else range(len(tokens))  # a range takes no memory
            for numbers, tokens in zip(fitting, self.tokens, strict=True)
        ]

    def fits(self, sizes: np.ndarray) -> np.ndarray:
        """`tokens.fits` with this data's limits; when no answer may be cut, the whole record has to fit."""
        return fits(sizes, self.max_length, self.max_img, whole=self.packing == "fit")

    def counts(self, total: int, mode: SamplingMode) -> list[int]:
        """How many of `total` records (-1: each once) an epoch draws from each dataset."""
        sizes = [len(usable) for usable in self.usable]
        return sizes if total < 0 else sample_counts(sizes, [d.ratio for d in self.datasets], mode, total)

    def epoch(self, epoch: int, total: int, mode: SamplingMode, size: int = -1) -> "Epoch":
        """A fresh draw of `total` records (-1: each once), and of these the first `size` (-1: all)."""
        pool = draw_epoch([len(usable) for usable in self.usable], self.counts(total, mode), self.seed, epoch)
        for dataset, usable in enumerate(self.usable):
            if not isinstance(usable, range):
                drawn = pool.datasets == dataset
                pool.records[drawn] = np.asarray(usable)[pool.records[drawn]]
        return Epoch(self, pool if size < 0 else pool.head(size), epoch)

    def size(self, dataset: int, record: int) -> tuple[int, ...]:
        """The row of a record in TokenStore.sizes."""
        return self.tokens[dataset].size(record)

    def turns(self, dataset: int, record: int, *, first: bool) -> list[Turn]:
        """A record as turns, its image paths made whole."""
        turns = self.tokens[dataset].turns(record, first=first)
        source = self.datasets[dataset]
        return [Turn(t.prompt, t.answer, [str(source.image_path(path)) for path in t.images]) for t in turns]


def refuse_missing_images(dataset: formats.Dataset, tokens: TokenStore, *, quiet: bool) -> None:
    """Look for every image of a dataset, once for its content and folder; ValueError for one that is not there."""
    where = hashlib.sha256(str(Path(dataset.img_dir).resolve()).encode()).hexdigest()[:32]
    done = tokens.folder / f"images-{where}.seen"
    if done.exists():
        return
    exists = lru_cache(100_000)(os.path.isfile)  # unlike Path.is_file, false also for a name that no system takes
    with tqdm(total=len(tokens), desc=f"looking for images of {dataset.name}", disable=quiet, leave=False) as bar:
        for index, paths in tokens.images():
            for path in map(dataset.image_path, paths):
                if not exists(path):
                    raise ValueError(f"{dataset.where(index)}: image {path} does not exist")
            bar.update(index - bar.n)
    done.touch()


class Epoch(Dataset[Sample]):
    """The samples of one epoch."""

    def __init__(self, data: InstructionData, pool: Pool, epoch: int) -> None:
        self.data = data
        self.pool = pool
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> Sample:
        rng = self._rng(index)
        broken: list[str] = []
        while True:
            records = self._records(index, rng)
            conversation, pieces = self._join(records)
            paths = [Path(path) for path in conversation.images]
            try:
                images = load_images(paths, self.data.transform, rng if self.data.augmented else None)
                return Sample(conversation, images, pieces, broken)
            except ValueError as error:
                broken.append(f"{self._where(records, str(error))}: {error}")
                if not self.data.skip_bad_images:
                    raise ValueError(broken[0]) from error
                if len(broken) == GIVE_UP:
                    raise ValueError(
                        f"{GIVE_UP} samples in a row have images that cannot be read: {broken[-1]}"
                    ) from error
            index = rng.randrange(len(self.pool))

    def conversation(self, index: int) -> Conversation:
        """The text of a sample, its images still paths."""
        return self._join(self._records(index, self._rng(index)))[0]

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"{self.data.seed}-{self.epoch}-{index}")

    def _records(self, index: int, rng: random.Random) -> list[tuple[int, int]]:
        """The records of a sample: that at `index`, and those packed behind it."""
        data = self.data
        first = self._first(index, rng)
        drawn = [self.pool[rng.randrange(len(self.pool))] for _ in range(data.multiturn_augmentation)]
        size, further = data.size(*first), [data.size(*record) for record in drawn]
        chosen = PACKING[data.packing](
            data.max_length - size[FIRST],
            data.max_img - size[IMAGES],
            [other[FURTHER] for other in further],
            [other[IMAGES] for other in further],
        )
        return [first, *(drawn[i] for i in chosen)]

    def _join(self, records: list[tuple[int, int]]) -> tuple[Conversation, list[Piece]]:
        conversation, pieces = Conversation(), []
        for place, record in enumerate(records):
            conversation.extend(self.data.turns(*record, first=place == 0))
            pieces.append(Piece(*record, end=len(conversation.ids)))
        conversation.cut(self.data.max_length, self.data.tokenizer.media_token_id)
        return conversation, pieces

    def _where(self, records: list[tuple[int, int]], message: str) -> str:
        """The place of the record whose image a message names."""
        for dataset, record in records:
            paths = [path for turn in self.data.turns(dataset, record, first=True) for path in turn.images]
            if any(message.startswith(f"image {path} ") for path in paths):
                return self.data.datasets[dataset].where(record)
        return "an image of " + self.data.datasets[records[0][0]].where(records[0][1])

    def _first(self, index: int, rng: random.Random) -> tuple[int, int]:
        """The record at `index`, or one drawn in its place where it cannot be trained on (`--skip_check_overlength`)."""
        for _ in range(len(self.pool)):
            dataset, record = self.pool[index]
            if self.data.fits(np.array(self.data.size(dataset, record))):
                return dataset, record
            index = rng.randrange(len(self.pool))
        raise ValueError(f"no record of this epoch fits --max_length {self.data.max_length}")
