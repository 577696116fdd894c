"""What a run says of each step: numbers, a sample now and then, and the records of a step that was skipped."""

import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.data.loader import InstructionData, Piece
from open_flamingo.instruction_tuning.samples import Shown, show
from open_flamingo.instruction_tuning.tracking import Tracker
from open_flamingo.instruction_tuning.trainer import Step, Tally, Trainer

logger = logging.getLogger("open_flamingo.train")

PATIENCE = 10
"""Steps in a row that may have no finite loss or gradient."""

NAMED = 20
"""Records that a message lists."""


@dataclass
class Reporter:
    """Logs the steps of a run."""

    trainer: Trainer
    data: InstructionData
    tokenizer: PreTrainedTokenizerBase
    tracker: Tracker
    every: int
    """Steps between two samples shown."""
    bar: tqdm
    loaded: float = 0.0
    """When the last window had been loaded, and how long that took."""
    data_time: float = 0.0
    broken: int = 0
    """Samples replaced for their images, on all ranks."""

    def timed(self, windows: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """The windows, on the device of this rank; measures how long each is waited for."""
        started = time.perf_counter()
        for window in windows:
            window = [batch.to(self.trainer.ranks.device) for batch in window]
            self.loaded = time.perf_counter()
            self.data_time = self.loaded - started
            yield window
            started = time.perf_counter()

    def after(self, step: Step, window: list[Batch]) -> None:
        """Log a step; ValueError where too many in a row could not be taken."""
        seconds = time.perf_counter() - self.loaded
        number, ranks = self.trainer.step, self.trainer.ranks
        self._count_broken(window)
        samples = sum(len(batch.input_ids) for batch in window)
        attended, room = tokens_of(window)
        tokens = ranks.world_size * attended / seconds
        values = {
            "train/lr": step.lr,
            "train/skipped_steps": self.trainer.skipped,
            "data/padding": 1 - attended / room,
            "data/replaced_samples": self.broken,
            "time/data_time": self.data_time,
            "time/step_time_m": seconds,
            "time/samples_per_second": ranks.world_size * samples / seconds,
            "time/samples_per_second_per_gpu": samples / seconds,
            "time/tokens_per_second": tokens,
            "memory/peak_gib": peak_memory(ranks.device) / 2**30,
        }
        if not step.problem:
            values |= {"train/loss": step.loss, "train/accuracy": step.accuracy, "train/grad_norm": step.grad_norm}
            values |= self.by_dataset("train", step.tally, self.data)
        self.tracker.scalars(values, number)
        if step.problem:
            self._skipped(step, window)
        if number % self.every == 0:
            self.show(show(self.trainer, self.tokenizer, window[-1], step.predictions), "train/sample", step.loss)
        self.bar.set_postfix(loss=f"{step.loss:.3f}", accuracy=f"{step.accuracy:.2f}", tokens=f"{tokens:.0f}/s")
        self.bar.update()

    def show(self, sample: Shown | None, tag: str, loss: float) -> None:
        """Log a sample, with its pictures in TensorBoard."""
        if sample is not None:
            logger.info("step %d, loss %.4f\n%s", self.trainer.step, loss, sample.text)
            self.tracker.text(tag, sample.text, self.trainer.step)
            self.tracker.images(f"{tag}_images", sample.pictures, self.trainer.step)

    def by_dataset(self, stage: str, tally: Tally, data: InstructionData) -> dict[str, float]:
        """The loss of each dataset by tag, where there are several."""
        if len(data.datasets) == 1:
            return {}
        return {f"{stage}/loss_by_dataset/{data.datasets[i].name}": loss for i, loss in tally.by_dataset().items()}

    def _count_broken(self, window: list[Batch]) -> None:
        if not self.data.skip_bad_images:
            return
        messages = [message for batch in window for message in batch.broken]
        for message in chain.from_iterable(self.trainer.ranks.gather(messages)):
            self.broken += 1
            if self.trainer.ranks.is_main:
                logger.warning("another sample takes the place of one: %s", message)

    def _skipped(self, step: Step, window: list[Batch]) -> None:
        """Name the records of a step that was not taken."""
        pieces = [piece for batch in window for piece in batch.pieces]
        gathered = self.trainer.ranks.gather((self._names(step.suspects), self._names(pieces)))
        suspects, present = (list(chain.from_iterable(of_ranks)) for of_ranks in zip(*gathered, strict=True))
        names = suspects or present
        listed = "; ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        logger.warning("step %d is skipped: %s, with %s", self.trainer.step, step.problem, listed)
        if self.trainer.skipped_in_a_row >= PATIENCE:
            raise ValueError(
                f"{PATIENCE} steps in a row were skipped, the last because {step.problem}, with {listed}: look at these"
                " records, lower --learning_rate, or train in fp32"
            )

    def _names(self, pieces: Iterable[Piece]) -> list[str]:
        return [self.data.datasets[piece.dataset].where(piece.record) for piece in pieces]


def tokens_of(window: list[Batch]) -> tuple[int, int]:
    """The tokens of a window, without its padding and with it."""
    masks = [batch.attention_mask for batch in window]
    return int(torch.stack([mask.sum() for mask in masks]).sum()), sum(mask.numel() for mask in masks)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device; what they take on MPS; the most this process took of the CPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
