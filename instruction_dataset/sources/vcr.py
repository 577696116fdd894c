"""VCR: questions about people in film scenes, whose answers give their reason; whoever is mentioned is shown cut out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from instruction_dataset.converting import Job, Row, Source, rows, rows_at
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.records import Record
from instruction_dataset.sources._crops import Box, Crops
from instruction_dataset.sources._questions import as_sentence

SPLITS = ("train", "val")
FOLDER = "vcr1images"
CLOSING = frozenset((".", ",", "!", "?", ";", ":", "%", ")", "]", "}", "...", "n't", "-"))
"""What stands close to the word before it."""
OPENING = frozenset(("(", "[", "{", "$", "#", "-"))
"""What stands close to the word after it."""
SHORTENED = frozenset(("s", "t", "re", "ve", "ll", "d", "m"))
"""What stands close to an apostrophe before it."""

Tokens = list[str | list[int]]
"""Words and punctuation, and the objects that are mentioned, by number."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question, with the right answer and the right reason for it."""
    make = partial(records, boxes_of=partial(read_boxes, source), crops=Crops.of(job), job=job)
    return job.each(rows(source / f"{job.split}.jsonl"), make)


def records(row: Row, boxes_of: Callable[[Row], list[Box]], crops: Crops, job: Job) -> Iterator[Record]:
    """The record of a question, unless its image is not there."""
    question = tokens(row, row.items("question"), "question")
    answer, reason = choice(row, "answer"), choice(row, "rationale")
    path = f"{FOLDER}/{row.text('img_fn')}"
    if not job.has_image(path):
        job.leave_out("the image is not there")
        return
    names = named([refuse_tags(name) for name in row.texts("objects")], chain(question, answer, reason))
    tags = cut_out(path, list(names), boxes_of(row), crops)
    text = as_sentence(joined(question, lambda number: names[number] + tags.pop(number, "")))
    if tags:
        others = listed([names[number] + tag for number, tag in tags.items()])
        text += f"\nAlso shown: {others}."
    sentences = (as_sentence(joined(part, names.__getitem__)) for part in (answer, reason))
    yield Record(crops.whole(path) + text, " ".join(sentences).strip())


def tokens(row: Row, values: list[Any], field: str) -> Tokens:
    """A text of the source; ValueError where it is not of words and of numbers of objects."""
    count = len(row.items("objects"))
    for value in values:
        if isinstance(value, str):
            refuse_tags(value)
        elif not (isinstance(value, list) and value and all(isinstance(i, int) and 0 <= i < count for i in value)):
            raise ValueError(f"field {field!r} must hold words and numbers of its {count} objects, not {value!r}")
    return values


def choice(row: Row, field: str) -> Tokens:
    """The one of the `answer_choices`, or `rationale_choices`, that is right."""
    choices, label = row.items(f"{field}_choices"), row.number_of(f"{field}_label")
    if not 0 <= label < len(choices) or not isinstance(choices[label], list):
        raise ValueError(f"field '{field}_label' is {label}, at which '{field}_choices' holds no array")
    return tokens(row, choices[label], f"{field}_choices[{label}]")


def read_boxes(source: Path, row: Row) -> list[Box]:
    """The boxes of all objects of an image, from its metadata."""
    file = source / FOLDER / row.text("metadata_fn")
    boxes = [box.value for box in rows_at(file, "boxes")]
    for box in boxes:
        if not (isinstance(box, list) and len(box) >= 4 and all(isinstance(side, int | float) for side in box)):
            raise ValueError(f"{file}: a box must be an array of at least four numbers, not {box!r}")
    if len(boxes) < len(row.items("objects")):
        raise ValueError(f"{file} has {len(boxes)} boxes for {len(row.items('objects'))} objects")
    return boxes


def cut_out(path: str, numbers: list[int], boxes: list[Box], crops: Crops) -> dict[int, str]:
    """The tags of objects, each cut out of the image."""
    folder = Path("vcr_crops", path).with_suffix("").as_posix()
    pieces = crops.cut(path, {f"{folder}/{number}.jpg": boxes[number] for number in numbers})
    return dict(zip(numbers, pieces, strict=True))


def named(objects: list[str], mentions: Iterable[str | list[int]]) -> dict[int, str]:
    """Names of the objects that are mentioned, in that order: person-a, person-b, dog-a."""
    names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for number in chain.from_iterable(mention for mention in mentions if isinstance(mention, list)):
        if number not in names:
            names[number] = f"{objects[number]}-{_letters(seen[objects[number]])}"
            seen[objects[number]] += 1
    return names


def joined(parts: Tokens, say: Callable[[int], str]) -> str:
    """A text of tokens as it is written: no space before a full stop, within quotes, around an apostrophe."""
    text, before, quoted = "", "", False
    for part in parts:
        word = part if isinstance(part, str) else listed([say(number) for number in part])
        close = _is_close(before, word)
        if word == '"':
            close, quoted = quoted or close, not quoted
        elif before == '"':
            close = quoted or close
        text += word if close or not text else f" {word}"
        before = word
    return text


def listed(names: list[str]) -> str:
    """Names with commas and `and`."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _is_close(before: str, word: str) -> bool:
    shortened = before == "'" and word in SHORTENED
    return word in CLOSING or before in OPENING or word.startswith("'") or shortened


def _letters(number: int) -> str:
    """a to z, then aa to zz."""
    return (_letters(number // 26 - 1) if number >= 26 else "") + ascii_lowercase[number % 26]


SOURCES = {
    "vcr": Source(
        convert=convert,
        files=f"{{split}}.jsonl, and {FOLDER}/ with its metadata",
        origin="https://visualcommonsense.com/download",
        images=f"VCR, in {FOLDER}/, of which pieces are cut",
        splits=SPLITS,
    ),
}
