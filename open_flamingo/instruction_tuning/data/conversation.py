"""Turns -> token ids and a loss mask. Only answers and their EOS are supervised, chosen by position, never by id."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from instruction_dataset.records import Record, split_images
from open_flamingo.instruction_tuning.data.prompts import ASSISTANT, NEXT_TURN, TEMPLATES


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

    def append(self, turn: Turn) -> None:
        """Append a whole turn."""
        self.add(turn.prompt, supervised=False)
        self.add(turn.answer, supervised=True)
        self.images.extend(turn.images)

    def cut(self, max_length: int, media_token_id: int) -> None:
        """Keep the first `max_length` tokens, and the images that still have their `<image>` token."""
        del self.ids[max_length:], self.supervised[max_length:]
        del self.images[self.ids.count(media_token_id) :]


class TurnTokenizer:
    """Tokenizes prompts and answers; a special token spelled out in a user's text stays plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, media_token_id: int, template: str) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, and every answer must end in one")
        self.tokenizer = tokenizer
        self.media_token_id = media_token_id
        self.template = template
        self.bos = _bos(tokenizer)

    def turn(self, record: Record, *, first: bool) -> Turn:
        """A record as the first turn of a conversation or a further one."""
        pieces, images = split_images(record.input)
        pieces[0] = (TEMPLATES[self.template] if first else NEXT_TURN) + pieces[0]
        pieces[-1] += ASSISTANT
        prompt = self.prompt(pieces) if first else self._join(pieces)
        return Turn(prompt, [*self._encode(record.output), self.tokenizer.eos_token_id], images)

    def prompt(self, pieces: list[str]) -> list[int]:
        """The text pieces between images to ids with an `<image>` between each two, after the BOS if there is one."""
        return [*self.bos, *self._join(pieces)]

    def _join(self, pieces: list[str]) -> list[int]:
        ids = self._encode(pieces[0])
        for piece in pieces[1:]:
            ids += [self.media_token_id, *self._encode(piece)]
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS id where the tokenizer starts its texts with one."""
    return [i for i in tokenizer("").input_ids[:1] if i == tokenizer.bos_token_id]
