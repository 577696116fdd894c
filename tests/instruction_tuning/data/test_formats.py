"""Data files and dataset configs: told apart by content, and one helpful sentence for everything malformed."""

import json
from typing import Any

import pytest
from toy import write_json_file

from instruction_dataset.records import Record
from open_flamingo.instruction_tuning.data.formats import load_datasets

ROW = {"input": "What is this?", "output": "A cat."}
RECORD = Record("What is this?", "A cat.")


def entry(json_path: object, **changes: Any) -> dict[str, Any]:
    """One entry of a dataset config."""
    return {"dataset_name": "cats", "json_path": str(json_path), "img_dir": "pictures", "ratio": 2} | changes


@pytest.fixture
def cats(tmp_path):
    return write_json_file(tmp_path / "cats.json", [ROW])


@pytest.fixture
def config(tmp_path):
    """Writes a dataset config."""
    return lambda *entries: write_json_file(tmp_path / "config.json", list(entries))


def test_a_data_file_is_one_dataset_named_after_the_file(cats):
    (dataset,) = load_datasets(cats)
    assert (dataset.name, list(dataset.records), dataset.img_dir, dataset.ratio) == ("cats", [RECORD], "", 1.0)


def test_a_config_gives_the_datasets_it_names(cats, config):
    datasets = load_datasets(config(entry(cats), entry(cats, dataset_name="more", img_dir="", ratio=0.5)))
    assert [(d.name, d.img_dir, d.ratio) for d in datasets] == [("cats", "pictures", 2.0), ("more", "", 0.5)]
    assert [list(d.records) for d in datasets] == [[RECORD], [RECORD]]
    assert str(datasets[0].image_path("a.png")) == "pictures/a.png"
    assert str(datasets[0].image_path("/elsewhere/a.png")) == "/elsewhere/a.png"


def test_json_lines_are_read_like_an_array(tmp_path, cats):
    lines = tmp_path / "cats.jsonl"
    lines.write_text(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n")
    assert list(load_datasets(lines)[0].records) == [RECORD, RECORD]
    config = tmp_path / "config.jsonl"
    config.write_text(json.dumps(entry(lines)) + "\n")
    assert list(load_datasets(config)[0].records) == [RECORD, RECORD]


def test_a_legacy_instruction_is_put_before_the_input_once_however_often_it_is_read(tmp_path):
    path = write_json_file(tmp_path / "legacy.json", [{"instruction": "Answer. ", **ROW}])
    before = path.read_bytes()
    for _ in range(2):
        assert list(load_datasets(path)[0].records) == [Record("Answer. What is this?", "A cat.")]
    assert path.read_bytes() == before


def test_records_cannot_be_changed(cats):
    record = load_datasets(cats)[0].records[0]
    with pytest.raises(AttributeError):
        record.input = "changed"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no records"),
        ([ROW, {"input": "q"}], "record 2: field 'output' is missing"),
        ([ROW, {"output": "a"}], "record 2: field 'input' is missing"),
        ([{"input": "q", "output": " "}], "record 1: field 'output' is empty"),
        ([{"input": 3, "output": "a"}], "record 1: field 'input' must be a string"),
        (["q"], "record 1: a record must be an object"),
        ([ROW, entry("cats.json")], "record 2: a record with the keys .*json_path.* is of no known shape"),
    ],
)
def test_a_malformed_data_file_is_refused_with_file_and_record(tmp_path, rows, message):
    path = write_json_file(tmp_path / "data.json", rows)
    with pytest.raises(ValueError, match=message) as refusal:
        load_datasets(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": -1}, "dataset 2: ratio must be a number of at least 0, not -1"),
        ({"ratio": "1"}, "dataset 2: ratio must be a number of at least 0, not '1'"),
        ({"ratio": True}, "dataset 2: ratio must be a number"),
        ({"ratio": float("nan")}, "dataset 2: ratio must be a number of at least 0, not nan"),
        ({"weight": 1}, r"dataset 2: expected the keys \['dataset_name', 'img_dir', 'json_path', 'ratio'\]"),
        ({"dataset_name": "cats"}, "dataset_name 'cats' is used twice"),
        ({"dataset_name": "../../evil"}, "dataset 2: dataset_name '../../evil' is no file name"),
        ({"dataset_name": "parts/x"}, "dataset 2: dataset_name 'parts/x' is no file name"),
        ({"dataset_name": "a\\b"}, "dataset_name .* is no file name"),
        ({"dataset_name": "a\0b"}, "dataset_name .* is no file name"),
        ({"dataset_name": ".."}, "dataset_name '..' is no file name"),
        ({"dataset_name": " "}, "dataset_name ' ' is no file name; results are filed by it, so choose a plain one"),
        ({"json_path": 3}, "dataset 2: json_path"),
        ({"img_dir": None}, "dataset 2: img_dir"),
        ({"dataset_name": None}, "dataset 2: dataset_name"),
    ],
)
def test_a_malformed_config_is_refused_with_file_and_dataset(cats, config, changes, message):
    path = config(entry(cats), entry(cats, dataset_name="more") | changes)
    with pytest.raises(ValueError, match=message) as refusal:
        load_datasets(path)
    assert str(path) in str(refusal.value)


def test_a_record_among_the_entries_of_a_config_is_refused(cats, config):
    with pytest.raises(ValueError, match=r"config\.json, dataset 2: expected the keys .* found \['input', 'output'\]"):
        load_datasets(config(entry(cats), ROW))


def test_a_file_that_a_config_names_is_refused_by_its_own_name(tmp_path, config):
    with pytest.raises(ValueError, match=r"nowhere\.json does not exist"):
        load_datasets(config(entry(tmp_path / "nowhere.json")))
    empty = write_json_file(tmp_path / "empty.json", [])
    with pytest.raises(ValueError, match=r"empty\.json holds no records"):
        load_datasets(config(entry(empty)))
    wrong = write_json_file(tmp_path / "wrong.json", [ROW, {"input": "q", "output": ""}])
    with pytest.raises(ValueError, match=r"wrong\.json, record 2: field 'output' is empty"):
        load_datasets(config(entry(wrong)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("cats", "starts with 'cats'"),
        ('[{"input": "q",\n "output" "a"}]', "line 2, column 11: Expecting ':' delimiter"),
        ('{"input": "q", "output": "a"}\n{"input"}', "line 2, column 9: Expecting ':' delimiter"),
    ],
)
def test_malformed_json_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        load_datasets(path)
    assert str(path) in str(refusal.value)
