"""The record format: `Record`, the image-tag grammar, and JSON in and out. Never imports torch, so converters stay light.

An image is named inside the input text, between two equal tags: `<img_path>cat.png<img_path>What is this?`.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from instruction_dataset.reading import excerpt, read_rows

IMAGE_TAG = "<img_path>"
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """One instruction with its images named in place, and the answer to learn; in a dialogue, the turns after it too."""

    input: str
    output: str
    further: tuple[tuple[str, str], ...] = ()
    """The (input, output) of each further turn."""

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The (input, output) of every turn, in order."""
        return ((self.input, self.output), *self.further)


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
        tail = excerpt(IMAGE_TAG + pieces[-1])
        raise ValueError(f"an image tag is not closed at {tail}; write {IMAGE_TAG}PATH{IMAGE_TAG}")
    if "" in map(str.strip, paths):
        raise ValueError(f"an image tag holds no path in {excerpt(text)}; write {IMAGE_TAG}PATH{IMAGE_TAG}")
    return pieces[0::2], paths


def refuse_half_characters(text: str) -> None:
    r"""ValueError for a lone surrogate, which JSON can spell (`\ud83d`), and which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(f"the text holds {half}, half of a character; write the character whole") from error


def parse_record(raw: object) -> Record:
    """A record out of parsed JSON, a legacy `instruction` put directly before `input`.

    Raises ValueError naming the field that is missing or wrong; the caller adds the file and the record number.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"a record must be an object with 'input' and 'output', not {kind_of(raw)}")
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
    """All rows of a data file at once, which suits a short one: a dataset config. ValueError as of `read_rows`."""
    return list(read_rows(path))


def write_json(path: Path, value: object) -> None:
    """`value` as JSON at `path`, which is replaced whole or not at all."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_whole(path: Path, text: str) -> None:
    """`text` at `path`, which is replaced whole or not at all."""
    with written_whole(path) as file:
        file.write(text)


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A file to write text to; it replaces `path` when the context ends well, and is gone when it ends otherwise.

    Raises ValueError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a plain open, unlike tempfile, leaves the file with the permissions that the user's umask asks for
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", buffering=BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if not error.errno or error.filename not in (None, str(temporary)):
            raise  # of another file, from which the text is made
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); make room there, or name another file"
        ) from error
    finally:
        with suppress(OSError):  # it has replaced `path`, or never was, or its folder takes no change, which is told
            temporary.unlink()


def kind_of(value: object) -> str:
    """The JSON word for the kind of `value`, as the reader of the file knows it."""
    words = {dict: "an object", list: "an array", bool: "true or false", type(None): "null", str: "a string"}
    # what is not JSON comes from Parquet: bytes, a date
    return words.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _string_field(raw: dict[str, Any], field: str) -> str:
    if not isinstance(raw[field], str):
        raise ValueError(f"field {field!r} must be a string, not {kind_of(raw[field])}")
    return raw[field]
