"""What is asked and answered: prompts, the settings of a request, draws that depend on its seed alone, and sure text."""

# b prompts, r rows under way (prompts times sequences or beams), t tokens, V vocabulary

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from instruction_dataset.dialogue import HUMAN

INCOMPLETE = "\ufffd"
"""What a character decodes to while some of its bytes are still to come."""


class Prompt(NamedTuple):
    """What the model is asked: ids, and each image, as a path or as `Inferencer.look` makes it."""

    ids: list[int]
    images: Sequence[str | Path | Tensor] = ()
    max_new_tokens: int | None = None
    """Where it wants fewer than its batch."""


class Answer(NamedTuple):
    """What the model said."""

    text: str
    tokens: int
    """Generated, with those that ended the answer."""
    is_cut: bool
    """The answer has as many tokens as it may have, and did not come to an end."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are made: the same for all prompts of a batch."""

    max_new_tokens: int = 1024
    num_beams: int = 1
    num_return_sequences: int = 1
    """Answers to each prompt."""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Sample among so many of the likeliest tokens; 0: among all."""
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    """Never repeat so many tokens in a row; 0: no limit."""
    length_penalty: float = 1.0
    """Above 0 favours long answers, with beams."""
    stop: tuple[str, ...] = (HUMAN.strip(),)
    """An answer ends before the first of these."""

    def __post_init__(self) -> None:
        """Raise ValueError for what no model can do."""
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "num_beams must be at least 1": self.num_beams >= 1,
            "num_return_sequences must be at least 1": self.num_return_sequences >= 1,
            "num_return_sequences is at most num_beams": self.num_beams == 1
            or self.num_return_sequences <= self.num_beams,
            "temperature must be above 0": self.temperature > 0,
            "top_k must not be below 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "no_repeat_ngram_size must not be below 0": self.no_repeat_ngram_size >= 0,
            "a stop string must not be empty": all(self.stop),
            "several answers to a prompt need sampling or beams": self.num_return_sequences == 1
            or self.do_sample
            or self.num_beams > 1,
        }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(f"{rule}: {self}")

    @property
    def is_seeded(self) -> bool:
        """Whether each answer is drawn with a generator of its own; beams are drawn together."""
        return self.do_sample and self.num_beams == 1

    def arguments(self, seeds: Sequence[int], padding: Tensor) -> dict[str, Any]:
        """Those of `generate`, for rows with these seeds (r,) and prompts with so much padding before them (b,)."""
        processors: list[LogitsProcessor] = []
        if self.no_repeat_ngram_size:
            processors.append(NoRepeat(self.no_repeat_ngram_size, padding))
        if self.is_seeded:
            processors += [*self._warpers(), Draw(seeds, padding.device)]
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "num_return_sequences": 1 if self.is_seeded else self.num_return_sequences,
            "no_repeat_ngram_size": 0,  # `NoRepeat` sees to it
            "logits_processor": LogitsProcessorList(processors),
            "length_penalty": self.length_penalty if self.num_beams > 1 else None,
            "do_sample": self.do_sample and not self.is_seeded,
        }
        if arguments["do_sample"]:
            arguments |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return arguments

    def _warpers(self) -> Iterable[LogitsProcessor]:
        if self.temperature != 1:
            yield TemperatureLogitsWarper(self.temperature)
        if self.top_k:
            yield TopKLogitsWarper(self.top_k)
        if self.top_p < 1:
            yield TopPLogitsWarper(self.top_p)


class NoRepeat(NoRepeatNGramLogitsProcessor):
    """Keeps n-grams of a text from coming up in it again; the padding before a prompt is no part of the text."""

    def __init__(self, ngram_size: int, padding: Tensor) -> None:
        """`padding` (b,) is how many tokens stand before each prompt."""
        super().__init__(ngram_size)
        self.padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (r, V) without those of the tokens that would complete an n-gram that the rows (r, t) hold already."""
        r, t = input_ids.shape
        padding = self.padding.repeat_interleave(r // len(self.padding))
        is_padding = torch.arange(t, device=padding.device) < padding[:, None]
        no_token = scores.shape[-1]  # which no text holds, and nobody misses
        return super().__call__(input_ids.masked_fill(is_padding, no_token), scores)


class Draw(LogitsProcessor):
    """Draws each row's next token with a generator of its own, so that an answer does not depend on its batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (r, V) of which only the drawn token's is finite."""
        rows = zip(scores.softmax(dim=-1), self.generators, strict=True)
        drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """The texts of ids (r, t), without special tokens."""
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def until_stop(text: str, stop: Sequence[str]) -> str:
    """What stands before the first stop string, without space around it."""
    ends = [text.find(string) for string in stop if string in text]
    return text[: min(ends, default=len(text))].strip()


def sure_part(text: str, stop: Sequence[str]) -> str:
    """The part of an answer under way that stays as it is, whatever follows."""
    if any(string in text for string in stop):
        return until_stop(text, stop)
    whole = text.rstrip(INCOMPLETE)
    beginnings = [string[:end] for string in stop for end in range(1, len(string))]
    open_ends = [len(start) for start in beginnings if whole.endswith(start)]
    return whole[: len(whole) - max(open_ends, default=0)].strip()
