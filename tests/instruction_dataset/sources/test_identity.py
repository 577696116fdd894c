"""Identity: the user's names filled into questions and answers, with the user's own beside them."""

import json
import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources.identity import SOURCES, TEMPLATES

NAMES = {"name": "Pinky", "maker": "the Lab"}


def convert(folder, value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    (folder / "identity.json").write_bytes(text)
    return list(SOURCES["identity"].convert(folder, Job()))


def test_the_names_are_filled_in_everywhere(tmp_path):
    records = convert(tmp_path, NAMES)
    assert len(records) == len(TEMPLATES) == SOURCES["identity"].records
    said = " ".join(record.input + record.output for record in records)
    assert said.count("Pinky") == sum(pair[1].count("{name}") for pair in TEMPLATES) > 5
    assert said.count("the Lab") == sum(pair[1].count("{maker}") for pair in TEMPLATES) > 5
    assert "{" not in said


def test_no_two_questions_are_the_same_and_no_sentence_begins_with_the_maker():
    assert len({question for question, _ in TEMPLATES}) == len(TEMPLATES)
    assert not any(re.search(r"(^|[.!?] ){maker}", answer) for _, answer in TEMPLATES)


def test_pairs_of_the_user_come_last_and_other_braces_stay(tmp_path):
    pairs = [{"question": "Is {name} {x}?", "answer": "{maker} says so."}]
    last = convert(tmp_path, {**NAMES, "pairs": pairs})[-1]
    assert (last.input, last.output) == ("Is Pinky {x}?", "the Lab says so.")


def test_the_file_itself_may_be_the_source(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(NAMES))
    assert len(list(SOURCES["identity"].convert(tmp_path / "mine.json", Job()))) == len(TEMPLATES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "Pinky"}, ": field 'maker' is missing"),
        ({**NAMES, "name": " "}, ": field 'name' is empty; give the name of your model"),
        ({**NAMES, "Colour": "pink"}, ": key 'Colour' is not known; choose of name, maker and pairs"),
        ({**NAMES, "pairs": {}}, ": field 'pairs' must be an array, not an object"),
        ({**NAMES, "pairs": [{"question": "a"}]}, ", record 1: field 'pairs[0].answer' is missing"),
        ({**NAMES, "maker": "<img_path>"}, ", record 2: its text holds '<img_path>'"),
        ([NAMES], ": a record must be an object, not an array"),
        (b"{'name'", " is not sound JSON"),
        (b"\xff", " is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'identity.json'}{message}")):
        convert(tmp_path, value)
