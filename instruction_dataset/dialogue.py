"""Dialogues as text: how turns are joined, and one record per answer out of a whole dialogue."""

from collections.abc import Iterator, Sequence

from instruction_dataset.records import IMAGE_TAG, Record

HUMAN = "### Human: "
ASSISTANT = "\n### Assistant: "
NEXT_TURN = "\n" + HUMAN
"""What stands before every instruction but the first."""

Turn = tuple[str, str]
"""A question and its answer."""


def history(turns: Sequence[Turn]) -> str:
    """What was said so far, as it stands before the question that follows."""
    return "".join(_said(*turn) for turn in turns)


def expand(turns: Sequence[Turn], images: str = "") -> Iterator[Record]:
    """One record per answer: the images' tags, the dialogue before it, and its question."""
    before = images
    for question, answer in turns:
        yield Record(before + question, answer)
        before += _said(question, answer)


def last_turn(turns: Sequence[Turn], images: str = "") -> Record:
    """The record of the last answer alone, with the dialogue before it."""
    question, answer = turns[-1]
    return Record(f"{images}{history(turns[:-1])}{question}", answer)


def _said(question: str, answer: str) -> str:
    """A turn and what stands before the next; single newlines join them, also where a text ends in one of its own."""
    return f"{question.rstrip()}{ASSISTANT}{answer.rstrip()}{NEXT_TURN}"


def refuse_tags(text: str) -> str:
    """A source's text as part of a record; ValueError where it holds what a record names images with."""
    if IMAGE_TAG in text:
        raise ValueError(f"its text holds {IMAGE_TAG!r}, which names images in records; take it out of the source")
    return text
