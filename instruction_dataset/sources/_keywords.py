"""Phrases by which dialogues of text alone are left out: they speak of an image that is not there, or of the speaker."""

import re

PHRASES = (
    # an image that the record does not have
    "image", "picture", "photo", "photograph", "visual", "screenshot", "painting", "video", "<img",
    # a refusal, or an apology for one
    "sorry", "apologize", "i cannot", "i can't", "i am unable", "i'm unable", "i don't have access",
    # the model that wrote the answer
    "as an ai", "ai assistant", "language model", "chatgpt", "openai", "gpt-4",
    # what generated instructions write where an input is missing
    "noinput",
)  # fmt: skip
"""In lower case; each counts as a whole word, in the singular or with an s: `photo` is not in photosynthesis."""

_ANY = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, PHRASES))})s?(?!\w)", re.IGNORECASE)


def holds_keyword(text: str) -> bool:
    """Whether one of `PHRASES` occurs in `text`, in whatever case and with straight or curly apostrophes."""
    return _ANY.search(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None
