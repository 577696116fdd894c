"""Datasets to batches: every choice depends on (seed, epoch, sample index) alone, not on workers, ranks or restarts."""

# b batch, t text tokens, N real images of the batch, F frames (1)

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from open_flamingo.instruction_tuning.data import formats
from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn, TurnTokenizer
from open_flamingo.instruction_tuning.data.images import load_image
from open_flamingo.instruction_tuning.data.mixture import SamplingMode, draw_epoch, sample_counts
from open_flamingo.instruction_tuning.data.packing import fits, pack

logger = logging.getLogger(__name__)


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

    def __init__(
        self,
        datasets: list[formats.Dataset],
        tokenizer: TurnTokenizer,
        transform: Callable,
        *,
        max_length: int,
        max_img: int,
        multiturn_augmentation: int,
        seed: int,
    ) -> None:
        self.datasets = datasets
        self.tokenizer = tokenizer
        self.transform = transform
        self.max_length = max_length
        self.max_img = max_img
        self.multiturn_augmentation = multiturn_augmentation
        self.seed = seed
        self.image_shape = tuple(transform(Image.new("RGB", (1, 1))).shape)
        self.usable: list[Sequence[int]] = [range(len(dataset.records)) for dataset in datasets]

    def check(self, *, quiet: bool = False) -> None:
        """Leave out the records that cannot be trained on, and say how many; refuse a missing image.

        Raises ValueError for a missing image or a tag that is not closed, naming file and record.
        """
        self.usable = [self._usable(dataset, quiet) for dataset in self.datasets]

    def _usable(self, dataset: formats.Dataset, quiet: bool) -> list[int]:
        usable = []
        for i in tqdm(range(len(dataset.records)), desc=f"checking {dataset.name}", disable=quiet, leave=False):
            turn = self._turn(dataset, i, first=True)
            for image in turn.images:
                if not dataset.image_path(image).is_file():
                    raise ValueError(f"{dataset.where(i)}: image {dataset.image_path(image)} does not exist")
            if fits(turn, self.max_length, self.max_img):
                usable.append(i)
        left_out = len(dataset.records) - len(usable)
        if left_out and not quiet:
            logger.warning(
                "%s: %d of %d records are left out: their prompt does not fit --max_length %d, or they have more than"
                " --max_img %d images",
                *(dataset.name, left_out, len(dataset.records), self.max_length, self.max_img),
            )
        return usable

    def epoch(self, epoch: int, total: int, mode: SamplingMode, size: int = -1) -> "Epoch":
        """A fresh draw of `total` records (-1: each once), and of these the first `size` (-1: all)."""
        sizes = [len(usable) for usable in self.usable]
        counts = sizes if total < 0 else sample_counts(sizes, [d.ratio for d in self.datasets], mode, total)
        pool = [(dataset, self.usable[dataset][i]) for dataset, i in draw_epoch(sizes, counts, self.seed, epoch)]
        return Epoch(self, pool if size < 0 else pool[:size], epoch)

    def turn(self, dataset: int, record: int, *, first: bool) -> Turn:
        """A record as a turn, its image paths made whole."""
        source = self.datasets[dataset]
        turn = self._turn(source, record, first=first)
        return Turn(turn.prompt, turn.answer, [str(source.image_path(path)) for path in turn.images])

    def _turn(self, dataset: formats.Dataset, index: int, *, first: bool) -> Turn:
        try:
            return self.tokenizer.turn(dataset.records[index], first=first)
        except ValueError as error:
            raise ValueError(f"{dataset.where(index)}: {error}") from error


class Epoch(Dataset[Sample]):
    """The samples of one epoch."""

    def __init__(self, data: InstructionData, pool: list[tuple[int, int]], epoch: int) -> None:
        self.data = data
        self.pool = pool
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> Sample:
        data = self.data
        rng = random.Random(f"{data.seed}-{self.epoch}-{index}")
        conversation = pack(
            self._first(index, rng),
            self._further(rng),
            max_length=data.max_length,
            max_img=data.max_img,
            media_token_id=data.tokenizer.media_token_id,
        )
        return Sample(conversation, [load_image(Path(path), data.transform, rng) for path in conversation.images])

    def _first(self, index: int, rng: random.Random) -> Turn:
        """The record at `index`, or one drawn in its place where it cannot be trained on (`--skip_check_overlength`)."""
        for _ in range(len(self.pool)):
            turn = self.data.turn(*self.pool[index], first=True)
            if fits(turn, self.data.max_length, self.data.max_img):
                return turn
            index = rng.randrange(len(self.pool))
        raise ValueError(f"no record of this epoch fits --max_length {self.data.max_length}")

    def _further(self, rng: random.Random) -> Iterator[Turn]:
        for _ in range(self.data.multiturn_augmentation):
            yield self.data.turn(*rng.choice(self.pool), first=False)


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


def rank_share(epoch: Epoch, batch_size: int, rank: int, world_size: int) -> Subset[Sample]:
    """The samples of one rank: of every `batch_size * world_size` in a row its own `batch_size`; a rest is dropped.

    So N ranks see together, step by step, what one rank with N times the batch sees.
    """
    step = batch_size * world_size
    if len(epoch) < step:
        raise ValueError(
            f"an epoch of {len(epoch)} samples does not fill one batch of {step} (--batch_size times ranks):"
            " lower --batch_size or raise --train_num_samples"
        )
    starts = range(rank * batch_size, len(epoch) // step * step, step)
    return Subset(epoch, [i for start in starts for i in range(start, start + batch_size)])


def batches(
    epoch: Epoch, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Sample]:
    """A loader of this rank's batches of an epoch."""
    pad_token_id = epoch.data.tokenizer.tokenizer.pad_token_id
    return DataLoader(
        rank_share(epoch, batch_size, rank, world_size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=partial(collate, pad_token_id=pad_token_id, image_shape=epoch.data.image_shape),
        pin_memory=pin_memory,
    )
