"""Datasets to batches: every choice depends on (seed, epoch, sample index) alone, not on workers, ranks or restarts."""

# b batch, t text tokens, N real images of the batch, F frames (1)

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from open_flamingo.instruction_tuning.data import formats
from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn, TurnTokenizer
from open_flamingo.instruction_tuning.data.images import load_for_training
from open_flamingo.instruction_tuning.data.mixture import Pool, SamplingMode, draw_epoch, sample_counts
from open_flamingo.instruction_tuning.data.packing import PACKING, PackingMode
from open_flamingo.instruction_tuning.data.tokens import FIRST, FURTHER, IMAGES, TokenStore, fits, open_tokens


@dataclass
class Sample:
    """One packed conversation and its images, (T, C, H, W)."""

    conversation: Conversation
    images: list[Tensor]


@dataclass
class Batch:
    """What a training step takes."""

    images: Tensor
    """Real images only, in reading order: (N, F, C, H, W)."""
    input_ids: Tensor
    """(b, t), padded on the right."""
    attention_mask: Tensor
    """(b, t)."""
    supervised: Tensor
    """True at the tokens whose prediction is trained: (b, t)."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        return Batch(*(x.to(device, non_blocking=True) for x in vars(self).values()))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for the loader."""
        return Batch(*(x.pin_memory() for x in vars(self).values()))


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
        cache: Path | None = None,
        quiet: bool = True,
    ) -> None:
        self.datasets = datasets
        self.tokenizer = tokenizer
        self.transform = transform
        self.max_length = max_length
        self.max_img = max_img
        self.multiturn_augmentation = multiturn_augmentation
        self.seed = seed
        self.packing = packing
        self.quiet = quiet
        self.image_shape = tuple(transform(Image.new("RGB", (1, 1))).shape)
        self.tokens = [open_tokens(dataset.records, tokenizer, cache, quiet=quiet) for dataset in datasets]
        self.usable: list[range | np.ndarray] = [range(len(tokens)) for tokens in self.tokens]

    def check(self) -> None:
        """Leave out the records that cannot be trained on; ValueError for a missing image, naming file and record."""
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
        records = self._records(index, rng)
        conversation = self._join(records)
        try:
            images = load_for_training([Path(path) for path in conversation.images], self.data.transform, rng)
        except ValueError as error:
            raise ValueError(f"{self._where(records, str(error))}: {error}") from error
        return Sample(conversation, images)

    def conversation(self, index: int) -> Conversation:
        """The text of a sample, its images still paths."""
        return self._join(self._records(index, self._rng(index)))

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

    def _join(self, records: list[tuple[int, int]]) -> Conversation:
        conversation = Conversation()
        for place, record in enumerate(records):
            conversation.extend(self.data.turns(*record, first=place == 0))
        conversation.cut(self.data.max_length, self.data.tokenizer.media_token_id)
        return conversation

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


def collate(samples: list[Sample], pad_token_id: int, image_shape: tuple[int, ...]) -> Batch:
    """Pad the text on the right; images of shape (C, H, W) are stacked as they come, without padding."""
    ids = [torch.tensor(sample.conversation.ids) for sample in samples]
    supervised = [torch.tensor(sample.conversation.supervised) for sample in samples]
    images = [image for sample in samples for image in sample.images]
    return Batch(
        images=torch.stack(images).unsqueeze(1) if images else torch.empty(0, 1, *image_shape),
        input_ids=pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        attention_mask=pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        supervised=pad_sequence(supervised, batch_first=True),
    )


def rank_share(epoch: Epoch, batch_size: int, rank: int, world_size: int, done: int = 0) -> Subset[Sample]:
    """The samples of one rank: of every `batch_size * world_size` in a row its own `batch_size`; a rest is dropped.

    So N ranks see together, step by step, what one rank with N times the batch sees. The first `done` batches are left
    out: the place in the data where a run goes on.
    """
    step = batch_size * world_size
    if len(epoch) < step:
        raise ValueError(
            f"an epoch of {len(epoch)} samples does not fill one batch of {step} (--batch_size times ranks):"
            " lower --batch_size or raise --train_num_samples"
        )
    starts = range(rank * batch_size + done * step, len(epoch) // step * step, step)
    return Subset(epoch, [i for start in starts for i in range(start, start + batch_size)])


def batches(
    epoch: Epoch,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    done: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Sample]:
    """A loader of this rank's batches of an epoch, without the first `done`."""
    pad_token_id = epoch.data.tokenizer.tokenizer.pad_token_id
    return DataLoader(
        rank_share(epoch, batch_size, rank, world_size, done),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=partial(collate, pad_token_id=pad_token_id, image_shape=epoch.data.image_shape),
        pin_memory=pin_memory,
    )
