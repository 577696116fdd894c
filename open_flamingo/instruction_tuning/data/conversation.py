"""Turns -> token ids and a loss mask. Only answers and their EOS are supervised, chosen by position, never by id."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from instruction_dataset.records import Record, split_images
from open_flamingo.instruction_tuning.data.prompts import TEMPLATES


@dataclass(frozen=True)
class Turn:
    """An instruction and its answer, as tokens."""

    prompt: list[int]
    answer: list[int]
    """Ends in EOS."""
    images: list[str]
    """One path for each `<image>` token of the prompt, in order."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass
class Conversation:
    """The tokens of one training sample: ids and mask grow together."""

    ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def add(self, ids: list[int], *, supervised: bool) -> None:
        """Append tokens of one kind."""
        self.ids.extend(ids)
        self.supervised.extend([supervised] * len(ids))

    def extend(self, turns: Iterable[Turn]) -> None:
        """Append whole turns."""
        for turn in turns:
            self.add(turn.prompt, supervised=False)
            self.add(turn.answer, supervised=True)
            self.images.extend(turn.images)

    def cut(self, max_length: int, media_token_id: int) -> None:
        """Keep the first `max_length` tokens, and the images that still have their `<image>` token."""
        del self.ids[max_length:], self.supervised[max_length:]
        del self.images[self.ids.count(media_token_id) :]


Encode = Callable[[str], list[int]]
PARALLEL = "TOKENIZERS_PARALLELISM"


class TurnTokenizer:
    """Tokenizes prompts and answers; a special token spelled out in a user's text stays plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, media_token_id: int, template: str) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, and every answer must end in one")
        self.tokenizer = tokenizer
        self.media_token_id = media_token_id
        self.template = template
        self.bos = _bos(tokenizer)
        self.eos: int = tokenizer.eos_token_id  # the tokenizer looks its own up anew each time

    def turns(self, record: Record, *, first: bool, encode: Encode | None = None) -> list[Turn]:
        """A record's turns, as those that begin a conversation or go on with one; `encode` in place of the tokenizer."""
        encode = encode or self.encode
        turns = []
        for number, (text, answer) in enumerate(record.turns):
            starts = first and number == 0
            pieces, images = split_images(text)
            pieces[0] = (TEMPLATES[self.template] if starts else NEXT_TURN) + pieces[0]
            pieces[-1] += ASSISTANT
            prompt = [*(self.bos if starts else []), *self._join(pieces, encode)]
            turns.append(Turn(prompt, [*encode(answer), self.eos], images))
        return turns

    def question(self, record: Record) -> tuple[list[int], list[str]]:
        """The ids and images of all that stands before a record's last answer; an EOS ends each answer before."""
        *history, last = self.turns(record, first=True)
        before = Conversation()
        before.extend(history)
        return [*before.ids, *last.prompt], [*before.images, *last.images]

    def prompt(self, pieces: list[str]) -> list[int]:
        """The text pieces between images to ids with an `<image>` between each two, after the BOS if there is one.

        No token at all is no beginning for a model: then it is the EOS, which ends the text before.
        """
        return [*self.bos, *self._join(pieces, self.encode)] or [self.eos]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """As `encode`, many texts at once, on all cores."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True  # as the text that they are
        try:
            with all_cores():
                return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = before

    def encoder(self, texts: Iterable[str]) -> Encode:
        """An `encode` that knows these texts already: all tokenized at once, equal ones once."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self.encode_all(unique), strict=True)).__getitem__

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that decides the ids of a record."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for passing in ("padding", "truncation"):
            backend.pop(passing, None)
        about = [backend, self.bos, self.media_token_id, self.eos, self.template]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _join(self, pieces: list[str], encode: Encode) -> list[int]:
        ids = list(encode(pieces[0]))
        for piece in pieces[1:]:
            ids += [self.media_token_id, *encode(piece)]
        return ids


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS id where the tokenizer starts its texts with one."""
    return [i for i in tokenizer("").input_ids[:1] if i == tokenizer.bos_token_id]


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the tokenizer use its threads, which commands that fork loader workers turn off."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ.pop(PARALLEL)
        if before is not None:
            os.environ[PARALLEL] = before
