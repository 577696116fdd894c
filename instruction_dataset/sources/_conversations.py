"""Dialogues as LLaVA and ShareGPT write them: an array of messages, each with a speaker and a text."""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Literal

from instruction_dataset.converting import Job, Row
from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN, Turn, expand, refuse_tags
from instruction_dataset.records import Record

Side = Literal["human", "assistant", "nobody"]
"""Whose turn a message belongs to; what nobody says is not read."""
Clean = Callable[[Side, str], str]

LLAVA: Mapping[str, Side] = {"human": "human", "gpt": "assistant"}
PLACEHOLDER = "<image>"


def turns(
    row: Row, key: str = "conversations", sides: Mapping[str, Side] = LLAVA, clean: Clean = lambda _side, text: text
) -> list[Turn]:
    """The turns of a dialogue; ValueError where it does not alternate between question and answer."""
    spoken, texts = _messages(row, key, sides, clean)
    if not spoken or spoken != ["human", "assistant"] * (len(spoken) // 2):
        found = [message.text("from") for message in row.rows(key)]
        raise ValueError(f"field {row.path + key!r} must alternate between question and answer, not {found}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def joined_turns(row: Row, job: Job, sides: Mapping[str, Side], clean: Clean) -> list[Turn]:
    """The turns of a dialogue in which a side may speak several times in a row: its messages as one, a line each.

    An answer to nothing, which a piece of a longer dialogue begins with, is left out; so is a question at the end.
    """
    messages = zip(*_messages(row, "conversations", sides, clean), strict=True)
    said = groupby(messages, key=lambda message: message[0])
    joined = [(side, "\n".join(text for _, text in group)) for side, group in said]
    if joined and joined[0][0] == "assistant":
        job.leave_out("the answer is to a question that is not there")
        del joined[0]
    elif len(joined) < 2:
        job.leave_out("the dialogue holds no question with an answer")
    texts = [text for _, text in joined]
    return list(zip(texts[::2], texts[1::2]))


def expand_for(job: Job, dialogue: list[Turn], images: str) -> Iterator[Record]:
    """One record per answer; as of 2023 with a blank line between what is said, and no space around it all."""
    return _expand_as_2023(dialogue, images) if job.as_2023 else expand(dialogue, images)


def without_placeholder(_side: Side, text: str) -> str:
    """A message without `<image>` and the newline that joins it to the text."""
    if PLACEHOLDER not in text:
        return text
    return text.replace(f"{PLACEHOLDER}\n", "").replace(f"\n{PLACEHOLDER}", "").replace(PLACEHOLDER, "")


def _expand_as_2023(dialogue: list[Turn], images: str) -> Iterator[Record]:
    said = ""
    for number, (question, answer) in enumerate(dialogue):
        said += question
        yield Record(images + (said.strip() if number else said), answer)
        said += f"\n{ASSISTANT}{answer}\n{NEXT_TURN}"


def _messages(row: Row, key: str, sides: Mapping[str, Side], clean: Clean) -> tuple[list[Side], list[str]]:
    """Whose turn each message is, and its text."""
    speakers, texts = row.columns(key, "from", "value")
    try:
        spoken = [sides[speaker] for speaker in speakers]
    except KeyError as error:
        (speaker,) = error.args
        field = f"{row.path}{key}[{speakers.index(speaker)}].from"
        raise ValueError(f"field {field!r} must be one of {', '.join(sides)}, not {speaker!r}") from error
    if "nobody" in spoken:
        texts = [text for side, text in zip(spoken, texts, strict=True) if side != "nobody"]
        spoken = [side for side in spoken if side != "nobody"]
    return spoken, [refuse_tags(text) for text in map(clean, spoken, texts)]
