"""Samples to batches: text padded, images as they are, every rank its share."""

# b batch, t text tokens, N real images of the batch, F frames (1)

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Thread

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from open_flamingo.instruction_tuning.data.loader import Epoch, InstructionData, Piece, Sample


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
    datasets: Tensor
    """The number of the dataset that each token comes from: (b, t)."""
    pieces: list[Piece] = field(default_factory=list)
    """The records of all samples."""
    broken: list[str] = field(default_factory=list)
    """What was wrong with samples that others took the place of."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for the loader."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(changed, name, change(value))
        return changed


def collate(samples: list[Sample], pad_token_id: int, image_shape: tuple[int, ...]) -> Batch:
    """Pad the text on the right; images of shape (C, H, W) are stacked as they come, without padding."""
    ids = [torch.tensor(sample.conversation.ids) for sample in samples]
    supervised = [torch.tensor(sample.conversation.supervised) for sample in samples]
    datasets = [torch.tensor(sample.datasets, dtype=torch.int64) for sample in samples]
    images = [image for sample in samples for image in sample.images]
    return Batch(
        images=torch.stack(images).unsqueeze(1) if images else torch.empty(0, 1, *image_shape),
        input_ids=pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        attention_mask=pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        supervised=pad_sequence(supervised, batch_first=True),
        datasets=pad_sequence(datasets, batch_first=True),
        pieces=[piece for sample in samples for piece in sample.pieces],
        broken=[message for sample in samples for message in sample.broken],
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


class EqualShare(Dataset[Sample]):
    """One rank's share of all samples, as long as every other rank's: what stands in at the end has nothing supervised."""

    def __init__(self, epoch: Epoch, rank: int, world_size: int) -> None:
        self.epoch = epoch
        self.indices = range(rank, math.ceil(len(epoch) / world_size) * world_size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        place = self.indices[index]
        sample = self.epoch[place % len(self.epoch)]
        if place >= len(self.epoch):
            sample.conversation.supervised = [False] * len(sample.conversation.ids)
        return sample


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
    share = rank_share(epoch, batch_size, rank, world_size, done)
    return loader(share, epoch.data, batch_size=batch_size, workers=workers, pin_memory=pin_memory)


def loader(
    samples: Dataset[Sample], data: InstructionData, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Sample]:
    """A loader of samples in their order, in batches."""
    pad_token_id = data.tokenizer.tokenizer.pad_token_id
    return DataLoader(
        samples,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=partial(collate, pad_token_id=pad_token_id, image_shape=data.image_shape),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_command,
    )


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Micro-batches, `size` at a time; the last window may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def _leave_signals_to_the_command(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # and Slurm's warning all processes of a step
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # torchrun sends it to all processes of a rank
        Thread(target=_end_when_the_command_says_so, daemon=True).start()


def _end_when_the_command_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
