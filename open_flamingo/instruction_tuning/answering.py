"""Records to answers: which of them are asked together, and what becomes of those that cannot be answered."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import torch

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from instruction_dataset.records import image_tag, split_images
from open_flamingo.instruction_tuning.data.formats import Dataset
from open_flamingo.instruction_tuning.data.prompts import format_prompt, join_prompt
from open_flamingo.instruction_tuning.generation import Prompt, Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer

logger = logging.getLogger("open_flamingo.inference")

MEMORY_IS_FULL = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""What the messages of PyTorch contain on the devices that have no error type for it."""

Row = dict[str, str]
"""A row of the results: `input`, `output`, `target`, `prompt`, and `error` where there is no answer."""


class Item(NamedTuple):
    """A record: of which dataset, and which there."""

    dataset: int
    record: int


class Plan(NamedTuple):
    """What is asked together, the same on all ranks and after every restart, and the rows of what cannot be asked."""

    batches: list[list[Item]]
    refused: dict[Item, Row]


def form_batches(lengths: Sequence[int], batch_size: int, max_tokens: int, new_tokens: int) -> list[list[int]]:
    """The indices of prompts in batches of like length, the longest first, so that memory runs out at once or never.

    A batch holds at most `batch_size` prompts and, unless `max_tokens` is 0, at most so many tokens: its padded prompts,
    each with `new_tokens` to come. A prompt that has more is a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        count = len(batches[-1]) + 1 if batches else 0
        fits = not max_tokens or count * (longest + new_tokens) <= max_tokens
        if batches and count <= batch_size and fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def seed_of(seed: int, name: str, record: int) -> int:
    """The seed that a record of the dataset `name` is answered with, whatever else is answered."""
    return int.from_bytes(blake2b(f"{seed}/{name}/{record}".encode(), digest_size=7).digest())


@dataclass(frozen=True)
class Answerer:
    """Answers records of several datasets, batch by batch."""

    inferencer: Inferencer
    datasets: Sequence[Dataset]
    settings: Settings
    seed: int
    max_length: int
    """Tokens of a prompt."""

    def plan(self, items: Sequence[Item], batch_size: int, max_tokens: int) -> Plan:
        """The batches of some records, as `form_batches` forms them; each record must come once."""
        lengths: dict[Item, int] = {}
        refused: dict[Item, Row] = {}
        for item in items:
            try:
                lengths[item] = len(self.prompt(item).ids)
            except ValueError as error:
                refused[item] = self._failed(item, str(error))
        batches = form_batches([*lengths.values()], batch_size, max_tokens, self.settings.max_new_tokens)
        asked = [*lengths]
        return Plan([[asked[index] for index in batch] for batch in batches], refused)

    def prompt(self, item: Item) -> Prompt:
        """What stands before a record's last answer; ValueError where it cannot be made, or is too long."""
        dataset = self.datasets[item.dataset]
        ids, images = self.inferencer.turns.question(dataset.records[item.record])
        if len(ids) > self.max_length:
            raise ValueError(f"its prompt has {len(ids)} tokens, more than --max_length {self.max_length}")
        return Prompt(ids, [dataset.image_path(path) for path in images])

    def rows(self, batch: Sequence[Item]) -> list[Row]:
        """The rows of the results of some records, answered together where that is possible.

        A batch that does not fit into memory is answered in halves, and so is one with an image that cannot be read:
        in the end the record alone has the error.
        """
        try:
            return self._answered(batch)
        except (ValueError, RuntimeError, MemoryError) as error:
            is_full = is_out_of_memory(error)
            if not is_full and not isinstance(error, ValueError):
                raise
            problem = self._too_large(batch[0]) if is_full else str(error)
        # only here has the error gone, and with it what its traceback kept in memory
        if len(batch) == 1:
            return [self._failed(batch[0], problem)]
        half = (len(batch) + 1) // 2
        if is_full:
            logger.warning(
                "out of memory with %d records at once: going on with %d of them, then the others; a smaller --batch_size"
                " or --max_batch_tokens saves such tries",
                len(batch),
                half,
            )
            free_memory()
        return [*self.rows(batch[:half]), *self.rows(batch[half:])]

    def _answered(self, batch: Sequence[Item]) -> list[Row]:
        prompts = [self.prompt(item) for item in batch]
        seeds = [seed_of(self.seed, self.datasets[item.dataset].name, item.record) for item in batch]
        answers = self.inferencer.answer(prompts, self.settings, seeds)
        return [self._row(item, answer.text) for item, answer in zip(batch, answers, strict=True)]

    def _row(self, item: Item, answer: str) -> Row:
        dataset = self.datasets[item.dataset]
        text, target = dialogue(dataset, item.record)
        pieces, _ = split_images(text)
        prompt = format_prompt(join_prompt(pieces), self.inferencer.template)
        return {"input": with_whole_paths(dataset, text), "output": answer, "target": target, "prompt": prompt}

    def _failed(self, item: Item, problem: str) -> Row:
        dataset = self.datasets[item.dataset]
        text, target = dialogue(dataset, item.record)
        try:
            text = with_whole_paths(dataset, text)
        except ValueError:
            logger.debug("%s: its text is shown as it is", dataset.where(item.record))
        return failure(f"{dataset.where(item.record)}: {problem}", text, target)

    def _too_large(self, item: Item) -> str:
        tokens, new = len(self.prompt(item).ids), self.settings.max_new_tokens
        return f"memory is too small for its prompt of {tokens} tokens with {new} more to come (--max_new_token)"


def failure(error: str, text: str = "", target: str = "") -> Row:
    """The row of what could not be answered."""
    return {"input": text, "output": "", "target": target, "prompt": "", "error": error}


def dialogue(dataset: Dataset, record: int) -> tuple[str, str]:
    """A record's text up to its last answer, and that answer."""
    *earlier, (last, target) = dataset.records[record].turns
    before = "".join(f"{text}{ASSISTANT}{output}{NEXT_TURN}" for text, output in earlier)
    return before + last, target


def with_whole_paths(dataset: Dataset, text: str) -> str:
    """A record's text whose image paths are made whole with the folder of the dataset's images."""
    pieces, paths = split_images(text)
    tags = [image_tag(str(dataset.image_path(path))) for path in paths]
    return pieces[0] + "".join(tag + piece for tag, piece in zip(tags, pieces[1:]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the accelerator or of the machine, is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in MEMORY_IS_FULL)
    )


def free_memory() -> None:
    """Give back what a failed try has left."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
