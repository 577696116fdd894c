"""The prompt templates, byte for byte those of the 2023 checkpoints."""

import re
from collections.abc import Iterable

from instruction_dataset.dialogue import ASSISTANT, HUMAN
from open_flamingo.src.factory import MEDIA_TOKEN

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
)

TEMPLATES = {"guanaco": SYSTEM + HUMAN, "guanaco-no-prompt": HUMAN}
"""What stands before the first instruction of a conversation, by template name."""

IMAGE = re.compile(rf"(?<!\\)(\\*){MEDIA_TOKEN}")
"""An `<image>` in a prompt and the backslashes before it: each two stand for one, and an odd one makes it text."""


def format_prompt(instruction: str, template: str) -> str:
    """The prompt of a one-turn conversation: the answer follows it directly."""
    return TEMPLATES[template] + instruction + ASSISTANT


def escape(text: str) -> str:
    """A user's text as part of a prompt: an `<image>` spelled out in it is no image, but these seven letters."""
    return IMAGE.sub(rf"\1\1\\{MEDIA_TOKEN}", text)


def join_prompt(texts: Iterable[str]) -> str:
    """A user's texts as part of a prompt, with an image between each two: `split_prompt` gives them back."""
    *before, last = texts
    escaped = [escape(text + MEDIA_TOKEN).removesuffix(f"\\{MEDIA_TOKEN}") for text in before]
    return MEDIA_TOKEN.join([*escaped, escape(last)])


def split_prompt(prompt: str) -> list[str]:
    """The pieces of text around the images of a prompt, each as the user wrote it."""
    first, *rest = IMAGE.split(prompt)
    pieces = [[first]]
    for backslashes, text in zip(rest[::2], rest[1::2]):
        pieces[-1].append(backslashes[: len(backslashes) // 2])
        if len(backslashes) % 2:
            pieces[-1] += [MEDIA_TOKEN, text]
        else:
            pieces.append([text])
    return ["".join(parts) for parts in pieces]
