"""The prompt templates, byte for byte those of the 2023 checkpoints."""

import re

from instruction_dataset.dialogue import ASSISTANT, HUMAN
from open_flamingo.src.factory import MEDIA_TOKEN

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
)

TEMPLATES = {"guanaco": SYSTEM + HUMAN, "guanaco-no-prompt": HUMAN}
"""What stands before the first instruction of a conversation, by template name."""


def format_prompt(instruction: str, template: str) -> str:
    """The prompt of a one-turn conversation: the answer follows it directly."""
    return TEMPLATES[template] + instruction + ASSISTANT


def escape(text: str) -> str:
    """A user's text as part of a prompt: an `<image>` spelled out in it is no image, but these seven letters."""
    return text.replace(MEDIA_TOKEN, f"\\{MEDIA_TOKEN}")


def split_prompt(prompt: str) -> list[str]:
    """The pieces of text around the images of a prompt, each as the user wrote it."""
    pieces = re.split(rf"(?<!\\){MEDIA_TOKEN}", prompt)
    return [piece.replace(f"\\{MEDIA_TOKEN}", MEDIA_TOKEN) for piece in pieces]
