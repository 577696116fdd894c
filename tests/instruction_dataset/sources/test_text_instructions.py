"""Instructions of text alone: what is left out and why, joined fields, and malformed rows refused by name."""

import json
from pathlib import Path

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.records import Record
from instruction_dataset.sources import alpaca_cot, instructions
from instruction_dataset.sources._keywords import PHRASES, holds_keyword

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCES = {**alpaca_cot.SOURCES, **instructions.SOURCES}


def convert(name, path, **flags):
    job = Job(**flags)
    return list(SOURCES[name].convert(path, job)), job


def written(folder, *rows, name="rows.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("phrase", PHRASES)
def test_each_phrase_is_found_in_any_case_inside_a_sentence(phrase):
    assert holds_keyword(f"Well, {phrase.title()}: that is it.")


@pytest.mark.parametrize(
    "text",
    [
        "Look at these images.",
        "<noinput>",
        "I\N{RIGHT SINGLE QUOTATION MARK}m unable",
        "SORRY!",
        "As an AI, I",
        "GPT-4 wrote it",
        '<img src="a">',
    ],
)
def test_a_text_with_a_keyword_is_known(text):
    assert holds_keyword(text)


@pytest.mark.parametrize("text", ["", "photosynthesis", "imagine that", "a videotape", "nothing of it", "a sorrylike"])
def test_a_word_that_only_begins_like_a_keyword_is_none(text):
    assert not holds_keyword(text)


def test_what_alpaca_cot_leaves_out_is_counted_by_reason():
    _, job = convert("alpaca-cot", FIXTURES / "alpaca-cot/source")
    assert job.left_out == {
        "it speaks of images, apologizes, or names a model": 3,
        "the instruction is too long": 1,
        "the answer is too long": 1,
        "the answer is empty": 1,
    }


def test_the_length_of_an_instruction_counts_its_input(tmp_path):
    rows = [{"instruction": "a" * 400, "input": "b" * count, "output": "c"} for count in (103, 104)]
    records, _ = convert("alpaca-cot", written(tmp_path, *rows))
    assert [len(record.input) for record in records] == [511]


def test_all_files_of_all_folders_are_read_in_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        written(tmp_path / name, {"instruction": name, "output": name})
    assert [record.input for record in convert("alpaca-cot", tmp_path)[0]] == ["a", "b"]
    assert [record.input for record in convert("alpaca-cot", tmp_path / "b/rows.jsonl")[0]] == ["b"]


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.json and no \.jsonl file; check --source"):
        convert("alpaca-cot", tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("alpaca-cot", {"instruction": "a"}, "'output' is missing"),
        ("alpaca-cot", {"instruction": "a", "input": 3, "output": "b"}, "'input' must be a string, not a number"),
        ("openorca", {"question": None, "response": "b"}, "'question' must be a string, not null"),
        ("lamini", {"instruction": "a"}, "'response' is missing"),
        ("longform", {"output": "a"}, "'input' is missing"),
        ("dynosaur", {"instruction": ["a"], "output": "a"}, "'instruction' must be a string, not an array"),
        ("dynosaur", {"instruction": "see <img_path>", "output": "a"}, "<img_path>"),
    ],
)
def test_a_malformed_row_is_refused_by_file_record_and_field(tmp_path, name, row, field):
    sound = dict.fromkeys(("instruction", "input", "output", "question", "response"), "x")
    with pytest.raises(ValueError, match=r"rows\.jsonl, record 2: ") as caught:
        convert(name, written(tmp_path, sound, row))
    assert field in str(caught.value)
    records, job = convert(name, tmp_path, skip_bad=True)
    assert len(records) == len(job.bad) == 1


def test_dynosaur_joins_instruction_and_input_with_a_space(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Add.", "input": "", "output": "0"}]
    records, _ = convert("dynosaur", written(tmp_path, *rows))
    assert records == [Record("Add. 1 2", "3"), Record("Add.", "0")]
