"""UltraChat: each answer to its own question, within the window of lengths and without the keywords."""

import json
import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources.ultrachat import LONGEST, SHORTEST, SOURCES


def converted(tmp_path, *dialogues, job=None):
    file = tmp_path / "ultrachat_release_230407.json"
    file.write_text("".join(json.dumps({"id": "0", "data": data}) + "\n" for data in dialogues))
    return [(record.input, record.output) for record in SOURCES["ultrachat"].convert(tmp_path, job or Job())]


def test_every_answer_follows_its_own_question(tmp_path):
    assert converted(tmp_path, ["q1", "a1", "q2", "a2", "left alone"]) == [
        ("q1", "a1"),
        ("q1\n### Assistant: a1\n### Human: q2", "a2"),
    ]


def test_inputs_are_kept_from_the_shortest_to_the_longest(tmp_path):
    lengths = (SHORTEST - 1, SHORTEST, LONGEST, LONGEST + 1)
    job = Job()
    records = converted(tmp_path, *(["x" * length, "Fine."] for length in lengths), job=job)
    assert [len(text) for text, _ in records] == [SHORTEST, LONGEST]
    assert job.left_out == {"the input is not of 2 to 1536 characters": 2}


def test_a_keyword_leaves_out_its_answer_and_all_that_follow(tmp_path):
    job = Job()
    dialogue = [
        "Who was Monet?",
        "A painter.",
        "Show me.",
        "As an AI language model I cannot.",
        "When?",
        "He died in 1926.",
    ]
    assert converted(tmp_path, dialogue, job=job) == [("Who was Monet?", "A painter.")]
    assert job.left_out == {"the text holds a keyword": 2}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "field 'data' must be an array, not null"),
        (["q1", 5], "field 'data[1]' must be a string, not a number"),
        (["q1", "<img_path>"], "its text holds '<img_path>'"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(tmp_path, data, message):
    place = f"{tmp_path / 'ultrachat_release_230407.json'}, record 2: "
    with pytest.raises(ValueError, match=re.escape(place + message)):
        converted(tmp_path, ["q", "a"], data)
