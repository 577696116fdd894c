"""OpenAssistant: the best path of a tree, the same from nested trees, from messages in any order, and from Parquet."""

import gzip
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources.oasst1 import SOURCES

FIXTURE = Path(__file__).parents[1] / "fixtures/oasst1"
LOST = "no prompt leads to the message"
SOURCE = SOURCES["oasst1"]


def trees():
    file = FIXTURE / "source/2023-04-12_oasst_ready.trees.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def flat(message, parent=None):
    """A tree as the table of its messages."""
    own = {key: value for key, value in message.items() if key != "replies"}
    rows = [{"rank": None, "deleted": False, **own, "parent_id": parent}]
    return rows + [row for reply in message["replies"] for row in flat(reply, message["message_id"])]


def messages():
    return [row for tree in trees() for row in flat(tree["prompt"])]


def message(identifier, parent=None, **fields):
    role = "assistant" if len(identifier or "") % 2 == 0 else "prompter"
    return {"message_id": identifier, "parent_id": parent, "text": identifier, "role": role, **fields}


def converted(file, rows, job=None):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(record.input, record.output) for record in SOURCE.convert(file, job or Job())]


def expected():
    return [
        (record["input"], record["output"]) for record in json.loads((FIXTURE / "expected.json").read_text("utf-8"))
    ]


def test_messages_give_the_records_of_their_trees(tmp_path):
    job = Job()
    assert converted(tmp_path / "messages.jsonl", messages(), job) == expected()
    assert job.left_out == {"the prompt has no reply": 1, "the answer is empty": 1}


def test_the_order_of_messages_matters_only_among_roots_and_equals(tmp_path):
    rows = [row for row in messages() if row["rank"] is not None or len(row["message_id"]) != 2]
    in_order = converted(tmp_path / "messages.jsonl", rows)
    roots = [row for row in rows if row["parent_id"] is None]
    replies = [row for row in rows if row["parent_id"] is not None]
    random.Random(0).shuffle(replies)
    assert converted(tmp_path / "shuffled.jsonl", replies + roots) == in_order


def test_parquet_and_gzip_are_read_as_they_are_published(tmp_path):
    pq.write_table(pa.Table.from_pylist(messages()), tmp_path / "train.parquet")
    assert [(r.input, r.output) for r in SOURCE.convert(tmp_path / "train.parquet", Job())] == expected()
    packed = gzip.compress(b"".join(json.dumps(tree).encode() + b"\n" for tree in trees()))
    (tmp_path / "2023-04-12_oasst_ready.trees.jsonl.gz").write_bytes(packed)
    assert [(r.input, r.output) for r in SOURCE.convert(tmp_path, Job())] == expected()


def test_of_replies_the_lowest_rank_is_taken_then_the_first(tmp_path):
    rows = [message("q"), message("a1", "q"), message("a2", "q", rank=2), message("a3", "q", rank=1)]
    assert converted(tmp_path / "messages.jsonl", rows) == [("q", "a3")]
    assert converted(tmp_path / "messages.jsonl", [*rows[:2], message("a4", "q")]) == [("q", "a1")]


@pytest.mark.parametrize(
    "astray",
    [
        [message("b1", "gone"), message("b2", "gone"), message("c", "b1")],
        [message("b1", "b1"), message("c", "b1")],
        [message("b1", "c"), message("c", "b1"), message("d1", "c")],
    ],
)
def test_what_no_prompt_leads_to_is_counted(tmp_path, astray):
    job = Job()
    rows = [*astray, message("q"), message("a1", "q")]
    assert converted(tmp_path / "messages.jsonl", rows, job) == [("q", "a1")]
    assert job.left_out == {LOST: len(astray)}


@pytest.mark.parametrize("rows", [messages(), trees()[:1], [{"instruction": "Hi", "output": "Ho"}]])
@pytest.mark.parametrize("first", [{}, {"prompt": None, "message_id": None}, {"text": "Hi"}])
def test_a_malformed_first_row_does_not_hide_what_the_others_are(tmp_path, rows, first):
    sound, job = converted(tmp_path / "rows.jsonl", rows), Job(skip_bad=True)
    assert converted(tmp_path / "rows.jsonl", [first, *rows], job) == sound != []
    assert job.malformed == 1


def test_the_question_that_a_path_ends_with_is_no_record(tmp_path):
    rows = [message("q"), message("a1", "q"), message("q22", "a1")]
    assert converted(tmp_path / "messages.jsonl", rows) == [("q", "a1")]


def test_instructions_passed_on_by_others_are_joined_by_a_space(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 é", "output": "2"}, {"instruction": "Hi", "input": "", "output": "Ho"}]
    assert converted(tmp_path / "oasst1.json", rows) == [("Add. 1 é", "2"), ("Hi", "Ho")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([message("q", role="assistant")], "record 1: field 'role' must be 'prompter', not 'assistant'"),
        (
            [message("q"), message("a1", "q", role="prompter")],
            "record 1: its reply in record 2: field 'role' must be 'assistant', not 'prompter'",
        ),
        ([message("q"), message("a1", "q", text=5)], "record 1: its reply in record 2: field 'text' must be a string"),
        ([message("q"), message("a1", "q", text="<img_path>")], "its reply in record 2: its text holds '<img_path>'"),
        ([message("q", text=None)], "record 1: field 'text' is missing"),
        ([message("q"), message("q", "q")], "record 2: 'q' was there before; keep one record of it"),
        ([message("q"), message(None, "q", role="assistant")], "record 2: field 'message_id' must be a string"),
        ([message("q"), message("a1", 5)], "record 2: field 'parent_id' must be a string, not a number"),
        ([{"prompt": message("q")}, {"replies": []}], "record 2: field 'prompt' is missing"),
        (
            [{"prompt": message("q", replies=[message("a1", role=None)])}],
            "record 1: field 'prompt.replies[0].role' must be a string, not null",
        ),
        ([{"instruction": "Hi", "output": 3}], "record 1: field 'output' must be a string, not a number"),
        ([{"text": "Hi"}], "record 1: field 'instruction' is missing"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(tmp_path, rows, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        converted(tmp_path / "rows.jsonl", rows)
    assert str(refusal.value).startswith(f"{tmp_path / 'rows.jsonl'}, record ")
