"""Identity: who the model is and who made it, as questions and answers that a user's own names are filled into."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record

FILE = "identity.json"
NAME, MAKER, PAIRS = "name", "maker", "pairs"

TEMPLATES = (
    ("What is your name?", "My name is {name}."),
    ("Who are you?", "I am {name}, an assistant that understands images and text. I was made by {maker}."),
    ("Who made you?", "I was made by {maker}."),
    ("Which company or group is behind you?", "Behind me is {maker}. I am called {name}."),
    ("Please introduce yourself.", "Hello! I am {name}, made by {maker}. Show me pictures or just ask me something."),
    ("What should I call you?", "Please call me {name}."),
    ("Are you a human?", "No, I am not a human. I am {name}, a computer program made by {maker}."),
    ("Am I talking to a real person?", "You are talking to {name}, a language model that can look at images."),
    ("Hi there! And you are?", "Hi! I am {name}. How can I help you?"),
    ("What can you do?", "I can describe pictures, answer questions about them, compare several, and talk about text."),
    ("Can you see images?", "Yes. Add one or several to your message, and I will look at them."),
    ("Did somebody train you?", "Yes, {maker} trained me on many examples of instructions and answers."),
    ("What kind of model are you?", "I am a multimodal language model: I read text and images, and I answer in text."),
    ("Do you have feelings?", "No. As a program I have no feelings, but I am glad to talk with you about yours."),
    ("How old are you?", "I have no age as people have: {maker} made me, and newer versions of me may follow."),
    ("Where do you live?", "I am a program, so I live nowhere; I run on a computer wherever somebody starts me."),
    ("Do you make mistakes?", "Yes, I do. Please check what matters, above all small details in images."),
    ("Can you draw a picture for me?", "I cannot draw. I answer in text, though I can describe a picture for you."),
    ("Are you another company's assistant?", "I am {name}, and it is {maker} that made me."),
    ("Tell me your name and your maker.", "I am {name}, and my maker is {maker}."),
)
"""Questions and answers; no sentence begins with a maker, who may be `the lab of ...`."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question: those above, and those of the user's own file."""
    (file,) = files_of(source, FILE)
    identity = Row(_read(file), file, 1)
    try:
        names = {key: _name(identity, key) for key in (NAME, MAKER)}
        unknown = set(identity.value) - {NAME, MAKER, PAIRS}
        if unknown:
            raise ValueError(f"key {min(unknown)!r} is not known; choose of {NAME}, {MAKER} and {PAIRS}")
        own = identity.rows(PAIRS) if PAIRS in identity else []
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    pairs = (dict(zip(("question", "answer"), pair)) for pair in TEMPLATES)
    given = (Row(pair, file, number) for number, pair in enumerate(pairs, start=1))
    return job.each(chain(given, own), partial(records, names=names))


def records(row: Row, names: dict[str, str]) -> Iterator[Record]:
    """The record of a question, the names filled in."""
    yield Record(_filled(row.text("question"), names), _filled(row.text("answer"), names))


def _filled(text: str, names: dict[str, str]) -> str:
    for key, name in names.items():
        text = text.replace(f"{{{key}}}", name)
    return refuse_tags(text)


def _name(identity: Row, key: str) -> str:
    name = identity.text(key).strip()
    if not name:
        raise ValueError(f"field {key!r} is empty; give the {key} of your model")
    return name


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not sound JSON ({error}); correct it there") from error


SOURCES = {
    "identity": Source(
        convert=convert,
        files=f'{FILE} with {{"{NAME}": ..., "{MAKER}": ...}} of your model, and your own '
        f'"{PAIRS}": [{{"question": ..., "answer": ...}}], if you like; {{{NAME}}} and {{{MAKER}}} are filled in',
        origin="a file of your own",
        records=len(TEMPLATES),
    )
}
