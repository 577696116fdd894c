"""The record format: `Record`, the image-tag grammar, and JSON in and out. Never imports torch, so converters stay light.

An image is named inside the input text, between two equal tags: `<img_path>cat.png<img_path>What is this?`.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_TAG = "<img_path>"
EXCERPT_LENGTH = 40


@dataclass(frozen=True)
class Record:
    """One instruction with its images named in place, and the answer to learn."""

    input: str
    output: str


def image_tag(path: str) -> str:
    """The text that stands for the image at `path`; ValueError where the path is empty or holds the tag itself."""
    if not path.strip():
        raise ValueError("an image path is empty; name the image file")
    if IMAGE_TAG in path:
        raise ValueError(f"image path {path!r} holds {IMAGE_TAG!r}, which marks where a path ends; rename the file")
    return f"{IMAGE_TAG}{path}{IMAGE_TAG}"


def split_images(text: str) -> tuple[list[str], list[str]]:
    """The pieces of `text` around its images, one more than there are, and the paths of the images, in order.

    Raises ValueError for a tag that is not closed, and for two tags with no path between them.
    """
    pieces = text.split(IMAGE_TAG)
    paths = pieces[1::2]
    if len(pieces) % 2 == 0:
        excerpt = _excerpt(IMAGE_TAG + pieces[-1])
        raise ValueError(f"an image tag is not closed at {excerpt}; write {IMAGE_TAG}PATH{IMAGE_TAG}")
    if not all(path.strip() for path in paths):
        raise ValueError(f"an image tag holds no path in {_excerpt(text)}; write {IMAGE_TAG}PATH{IMAGE_TAG}")
    return pieces[0::2], paths


def parse_record(raw: object) -> Record:
    """A record out of parsed JSON, a legacy `instruction` put directly before `input`.

    Raises ValueError naming the field that is missing or wrong; the caller adds the file and the record number.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"a record must be an object with 'input' and 'output', not {_kind(raw)}")
    if "input" not in raw and "instruction" not in raw:
        raise ValueError("field 'input' is missing; give the instruction as a string")
    text = "".join(_string_field(raw, field) for field in ("instruction", "input") if field in raw)
    if "output" not in raw:
        raise ValueError("field 'output' is missing; give the answer as a string")
    output = _string_field(raw, "output")
    if not output.strip():
        raise ValueError("field 'output' is empty; give the answer or leave the record out")
    return Record(input=text, output=output)


def read_json_array(path: Path) -> list[Any]:
    """The items of a JSON array or of JSON Lines, told apart by the first character.

    Raises ValueError for a file that cannot be read, or that is neither, naming the line and column of malformed JSON.
    """
    text = _read_text(path)
    match text.lstrip()[:1]:
        case "[":
            return _parse_json(text, path, first_line=1)
        case "{":
            # not splitlines(): U+2028 and its like are legal inside a JSON string
            lines = enumerate(text.split("\n"), start=1)
            return [_parse_json(line, path, first_line=number) for number, line in lines if line.strip()]
        case "":
            raise ValueError(f"{path} is empty; it must hold a JSON array or JSON Lines")
        case _:
            raise ValueError(
                f"{path} starts with {_excerpt(text.lstrip())}; it must hold a JSON array ('[') or JSON Lines ('{{')"
            )


def write_json(path: Path, value: object) -> None:
    """`value` as JSON at `path`, which is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a plain open, unlike tempfile, leaves the file with the permissions that the user's umask asks for
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; name a file that you may read") from error


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = _excerpt(text[error.pos :]) if text[error.pos :].strip() else "the end"
        line = first_line + error.lineno - 1
        raise ValueError(
            f"{path}, line {line}, column {error.colno}: {error.msg}, found {found}; correct the JSON there"
        ) from error


def _string_field(raw: dict[str, Any], field: str) -> str:
    if not isinstance(raw[field], str):
        raise ValueError(f"field {field!r} must be a string, not {_kind(raw[field])}")
    return raw[field]


def _kind(value: object) -> str:
    """The JSON word for the kind of `value`, as the reader of the file knows it."""
    words = {dict: "an object", list: "an array", bool: "true or false", type(None): "null", str: "a string"}
    return words.get(type(value), "a number")


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= EXCERPT_LENGTH else text[: EXCERPT_LENGTH - 3] + "...")
