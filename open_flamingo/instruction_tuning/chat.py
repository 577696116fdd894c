"""A conversation under way: from its turns to what the model is asked, and to a record of instruction data."""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from instruction_dataset.formats import parse_row
from instruction_dataset.records import IMAGE_TAG, Record, image_tag, split_images, write_json
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.images import open_image
from open_flamingo.instruction_tuning.generation import Prompt

Turn = tuple[str, str]
"""A message, its images named before its text, and its answer."""


@dataclass
class Chat:
    """What was said so far, and the images of the next message."""

    turns: list[Turn] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    saved: set[Path] = field(default_factory=set)
    """The files that this conversation was written to, which it may write anew."""

    def attach(self, path: Path) -> tuple[int, int]:
        """Put an image into the next message; its width and height. Raises ValueError where it cannot be read."""
        size = open_image(path).size
        image_tag(str(path.absolute()))  # refuses what no record could name
        self.images.append(str(path.absolute()))
        return size

    def message(self, text: str) -> str:
        """A user's text as the next message: behind its images."""
        if IMAGE_TAG in text:
            raise ValueError(
                f"a message cannot hold {IMAGE_TAG!r}, which names images in instruction data; leave it out"
            )
        return "".join(map(image_tag, self.images)) + text

    def prompt(self, message: str, tokenizer: TurnTokenizer) -> Prompt:
        """What stands before the answer to `message`, as training builds it: an EOS ends each answer so far."""
        return Prompt(*tokenizer.question(_record([*self.turns, (message, "")])))

    def add(self, message: str, answer: str) -> None:
        """Go on with a turn; the message after it has no images yet."""
        self.turns.append((message, answer))
        self.images.clear()

    def save(self, path: Path) -> None:
        """Write the one record of this conversation, whole or not at all.

        Raises ValueError where nothing was said, where another file is at `path`, and for a text that no record can hold.
        """
        if not self.turns:
            raise ValueError("nothing was said yet, so there is nothing to save")
        if path.suffix != ".json":
            raise ValueError(f"{path} is no name for JSON; name a file that ends in .json")
        if path.exists() and path.resolve() not in self.saved:
            raise ValueError(f"{path} exists already; name a new file")
        row = to_row(self.turns)
        parse_row(row)  # refuses what could not be read back
        write_json(path, [row])
        self.saved.add(path.resolve())


def to_row(turns: list[Turn]) -> dict[str, Any]:
    """Turns as a row of a data file: one as input and output, several as messages."""
    if len(turns) == 1:
        return dict(zip(("input", "output"), turns[0], strict=True))
    messages = (
        ({"role": "user", "content": _content(text)}, {"role": "assistant", "content": answer})
        for text, answer in turns
    )
    return {"messages": list(chain.from_iterable(messages))}


def _content(text: str) -> list[dict[str, str]]:
    """The parts of a message; as a part of its own, an image is never mixed up with an `<image>` in the text."""
    pieces, paths = split_images(text)
    return [*({"type": "image", "image": path} for path in paths), {"type": "text", "text": "".join(pieces)}]


def _record(turns: list[Turn]) -> Record:
    (text, answer), *further = turns
    return Record(text, answer, tuple(further))
