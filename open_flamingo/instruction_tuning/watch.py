"""Answers under way: which rows end before the model ends them, who hears of their text, and who of their end."""

# r rows under way (prompts times sequences or beams), t tokens

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from open_flamingo.instruction_tuning.generation import decode, sure_part

Hear = Callable[[str], None]
"""Takes the next piece of an answer's text, as soon as it is sure."""


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its text holds one of some strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        """Answers begin at token `start`."""
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.tokens = 1 + max((len(text.encode()) for text in stop), default=0)
        """A string that ends in the newest token began at most so many tokens ago."""

    def __call__(self, input_ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        """True for the rows (r,) of `input_ids` (r, t) that end here."""
        tail = input_ids[:, max(self.start, input_ids.shape[1] - self.tokens) :]
        texts = decode(self.tokenizer, tail)
        ends = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(ends, device=input_ids.device)


class Limits(StoppingCriteria):
    """Ends rows that may have fewer tokens than their batch, and those that nobody wants any more."""

    def __init__(self, limits: Sequence[int], wanted: Callable[[int], bool] | None, start: int) -> None:
        """`limits` are those of answers, to which `wanted` says whether they go on; each has as many rows, or beams."""
        self.limits, self.wanted, self.start = limits, wanted, start

    def __call__(self, input_ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        """True for the rows (r,) of `input_ids` (r, t) that end here."""
        r, length = input_ids.shape[0], input_ids.shape[1] - self.start
        answers = [row * len(self.limits) // r for row in range(r)]
        ends = [length >= self.limits[n] or (self.wanted is not None and not self.wanted(n)) for n in answers]
        return torch.tensor(ends, device=input_ids.device)


class Listener(StoppingCriteria):
    """Hands the text of rows on while it grows, without what may still change or turn out to end it; ends none."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int, hear: Mapping[int, Hear]
    ) -> None:
        """`hear` is who listens to which row."""
        self.tokenizer, self.stop, self.start, self.hear = tokenizer, stop, start, hear
        self.said = dict.fromkeys(hear, 0)
        """How many characters each listener has."""

    def __call__(self, input_ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        """False for all rows (r,) of `input_ids` (r, t)."""
        rows = list(self.hear)
        for row, text in zip(rows, decode(self.tokenizer, input_ids[rows, self.start :])):
            self.say(row, sure_part(text, self.stop))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def say(self, row: int, text: str) -> None:
        """Hand on what of a row's text so far is new."""
        piece = text[self.said[row] :]
        if piece:
            self.said[row] = len(text)
            self.hear[row](piece)


class Watch(StoppingCriteria):
    """Ends the rows that any of some criteria ends, and tells of each row that has ended, by them or by its end token."""

    def __init__(
        self,
        criteria: Sequence[StoppingCriteria],
        ends: Sequence[int],
        start: int,
        tell: Callable[[int, list[int]], None],
    ) -> None:
        """`tell` takes a row's number and the ids of its answer."""
        self.criteria, self.ends, self.start, self.tell = criteria, ends, start, tell
        self.told: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """True for the rows (r,) of `input_ids` (r, t) that end here."""
        ended = torch.isin(input_ids[:, -1], torch.tensor(self.ends, device=input_ids.device))
        for criterion in self.criteria:
            ended |= criterion(input_ids, scores, **kwargs)
        for row in ended.nonzero().flatten().tolist():
            if row not in self.told:
                self.told.add(row)
                self.tell(row, input_ids[row, self.start :].tolist())
        return ended
