"""Rows as other people write them -> records, each format recognised by the keys of its row.

A row that gives its images beside the text names each in place: the text says `<image>`, or a part of a message is one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from instruction_dataset.reading import excerpt
from instruction_dataset.records import IMAGE_TAG, Record, image_tag, kind_of, parse_record, refuse_half_characters

PLACEHOLDER = "<image>"
ROLES = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "bard", "bing", "chatgpt", "claude", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
SHAPES = (
    "input/output, instruction/input/output, conversations, messages, question/response, "
    "prompt/completion, prompt/response"
)
IMAGE_FIELDS = ("image", "images")
SHOWN_KEYS = 12

# a newline that joins the placeholder to the text is part of it: LLaVA writes '<image>\n' and '\n<image>'
_PLACEHOLDER = re.compile(f"\n?{PLACEHOLDER}\n?")
_REMOTE = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class _Image:
    """A place in a message where an image stands; without a path, the next of the row's images."""

    path: str | None = None


@dataclass
class _Message:
    role: str
    parts: list[str | _Image]


def name_of(raw: object) -> str:
    """The name of a row's format; ValueError for a shape that is not known."""
    if not isinstance(raw, dict):
        raise ValueError(f"a record must be an object, not {kind_of(raw)}; known shapes: {SHAPES}")
    # Parquet gives every key to every row, with null for those that the row does not have
    keys = {key for key, value in raw.items() if value is not None}
    if "output" in keys and "instruction" in keys:
        tagged = any(IMAGE_TAG in raw[key] for key in ("instruction", "input") if isinstance(raw.get(key), str))
        return "input/output" if tagged else "alpaca"
    for name in ("conversations", "messages"):
        if name in keys and not {"input", "output"} <= keys:
            return name
    if {"question", "response"} <= keys:
        return "question/response"
    if "prompt" in keys and keys & {"completion", "response"}:
        return "prompt/completion"
    if keys & {"input", "output"}:
        return "input/output"
    shown = [str(key) for key in islice(raw, SHOWN_KEYS)] + ["..."] * (len(raw) > SHOWN_KEYS)
    raise ValueError(f"a record with the keys {shown} is of no known shape; known shapes: {SHAPES}")


def parse_row(raw: object) -> Record:
    """The record of a row of any known format; ValueError, to which the caller adds the file and the record number."""
    name = name_of(raw)
    assert isinstance(raw, dict)
    match name:
        case "input/output":
            record = parse_record(_without_nulls(raw))
        case "alpaca":
            record = _alpaca(raw)
        case "conversations" | "messages":
            record = _dialogue(raw, name)
        case "question/response":
            record = _plain(raw, ["system_prompt", "question"], "response")
        case _:
            answer = "completion" if raw.get("completion") is not None else "response"
            record = _plain(raw, ["prompt"], answer)
    for text in (text for turn in record.turns for text in turn):
        refuse_half_characters(text)
    return record


def _alpaca(raw: dict[str, Any]) -> Record:
    _refuse_images(raw)
    raw = _without_nulls(raw)
    record = parse_record(raw)
    first, second = raw["instruction"], raw.get("input", "")
    # a joint with no space in it would run two words together; with an image tag it is left as it always was
    if first and second and not first[-1].isspace() and not second[0].isspace():
        return Record(f"{first}\n{second}", record.output)
    return record


def _without_nulls(raw: dict[str, Any]) -> dict[str, Any]:
    """A row without the one of `instruction` and `input` that is null where the other is not."""
    null = {key for key in ("instruction", "input") if raw.get(key) is None}
    return raw if len(null) != 1 else {key: value for key, value in raw.items() if key not in null}


def _plain(raw: dict[str, Any], questions: list[str], answer: str) -> Record:
    _refuse_images(raw)
    texts = [_text(raw[key], f"field {key!r}") for key in questions if raw.get(key) is not None]
    output = _text(raw[answer], f"field {answer!r}")
    if not output.strip():
        raise ValueError(f"field {answer!r} is empty; give the answer or leave the record out")
    return Record("\n".join(filter(None, texts)), output)


def _dialogue(raw: dict[str, Any], name: str) -> Record:
    if not isinstance(raw[name], list):
        raise ValueError(f"field {name!r} must be an array of messages, not {kind_of(raw[name])}")
    messages = [_message(message, f"message {i}") for i, message in enumerate(raw[name], start=1)]
    _place_images(messages, _row_images(raw))
    texts = [(message.role, _rendered(message)) for message in messages]
    joined = [(role, "\n".join(text for _, text in group if text)) for role, group in groupby(texts, lambda m: m[0])]
    system = joined.pop(0)[1] if joined and joined[0][0] == "system" else ""
    if any(role == "system" for role, _ in joined):
        raise ValueError("a system message stands after the dialogue has begun; put it first or leave it out")
    if joined and joined[0][0] == "assistant":
        if name == "messages":
            raise ValueError("the dialogue begins with the assistant; put the question before the answer")
        # ShareGPT rows are pieces of longer dialogues: this answer's question is in the piece before
        del joined[0]
    if joined and joined[-1][0] == "human":
        del joined[-1]
    if not joined:
        raise ValueError("the dialogue holds no question with an answer; give one or leave the record out")
    turns = [(question, answer) for (_, question), (_, answer) in zip(joined[::2], joined[1::2], strict=True)]
    for i, (_, answer) in enumerate(turns, start=1):
        if not answer.strip():
            raise ValueError(f"the answer of turn {i} is empty; give the answer or leave the record out")
    question, answer = turns[0]
    return Record("\n".join(filter(None, (system, question))), answer, tuple(turns[1:]))


def _message(raw: object, where: str) -> _Message:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be an object, not {kind_of(raw)}")
    role_key, text_key = ("from", "value") if raw.get("from") is not None else ("role", "content")
    said = raw.get(role_key)
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise ValueError(f"{where} is from {excerpt(str(said))}, which must be one of {', '.join(ROLES)}")
    content = raw.get(text_key)
    if not isinstance(content, list):
        return _Message(role, [_text(content, f"{text_key!r} of {where}")])
    parts = [_part(part, f"part {i} of {where}") for i, part in enumerate(content, start=1)]
    if role != "human" and any(isinstance(part, _Image) for part in parts):
        raise ValueError(f"{where} gives an image to the {role}; images go into what the user says")
    return _Message(role, list(_joined(parts)))


def _part(raw: object, where: str) -> str | _Image:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or kind not in ("text", "image_url", "image"):
        raise ValueError(f"{where} must be an object with the type 'text', 'image_url' or 'image'")
    value = raw.get(kind)
    if kind == "text":
        return _text(value, where)
    if kind == "image" and value is None:
        return _Image()
    return _Image(_path(value.get("url") if kind == "image_url" and isinstance(value, dict) else value, where))


def _joined(parts: list[str | _Image]) -> Iterator[str | _Image]:
    """Texts that follow each other as one, a line each."""
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            yield "\n".join(part for part in group if isinstance(part, str))
        else:
            yield from group


def _row_images(raw: dict[str, Any]) -> list[str]:
    """The images that a row gives beside its messages."""
    given = [key for key in IMAGE_FIELDS if raw.get(key) is not None]
    if len(given) > 1:
        raise ValueError("the record has both 'image' and 'images'; keep one")
    values = raw[given[0]] if given else []
    return [_path(value, f"field {given[0]!r}") for value in (values if isinstance(values, list) else [values])]


def _place_images(messages: list[_Message], images: list[str]) -> None:
    """Give each placeholder of what the user says the next of the row's images; text of a row without any is text."""
    questions = [message for message in messages if message.role == "human"]
    if images:
        for message in questions:
            message.parts = [piece for part in message.parts for piece in _split(part)]
    places = sum(part == _Image() for message in questions for part in message.parts)
    named = any(isinstance(part, _Image) for message in questions for part in message.parts)
    if images and questions and not named:
        questions[0].parts[:0] = [_Image(path) for path in images]
        return
    if places != len(images):
        raise ValueError(f"the text has {places} places for images and the record {len(images)} images; give each one")
    rest = iter(images)
    for message in questions:
        message.parts = [_Image(next(rest)) if part == _Image() else part for part in message.parts]


def _split(part: str | _Image) -> list[str | _Image]:
    if isinstance(part, _Image):
        return [part]
    first, *others = _PLACEHOLDER.split(part)
    return [first, *(piece for text in others for piece in (_Image(), text))]


def _rendered(message: _Message) -> str:
    return "".join(image_tag(part.path or "") if isinstance(part, _Image) else part for part in message.parts)


def _path(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"{where} must name an image file, not hold {kind_of(value)}; save the image and give its path"
        )
    path = value.removeprefix("file://")
    if found := _REMOTE.match(path):
        raise ValueError(f"{where} gives an image as {found[0]!r}, not as a file; save the image and give its path")
    return path


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {kind_of(value)}")
    if IMAGE_TAG in value:
        raise ValueError(f"{where} holds {IMAGE_TAG!r}, which marks images of input/output records; take it out")
    return value


def _refuse_images(raw: dict[str, Any]) -> None:
    """Images that would silently be left out: these formats have no place for them."""
    for key in IMAGE_FIELDS:
        if raw.get(key):
            raise ValueError(f"field {key!r} is not read in a record of this shape; name images in an 'input'")
