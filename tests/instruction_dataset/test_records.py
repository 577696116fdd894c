"""The record format: tags written are tags read, and every wrong file or field is refused with a sentence that helps."""

import copy
import json
import subprocess
import sys

import pytest

from instruction_dataset.records import (
    IMAGE_TAG,
    Record,
    image_tag,
    parse_record,
    read_json_array,
    split_images,
    write_json,
)


def test_split_images_undoes_image_tag():
    text = f"{image_tag('a/1.png')}then {image_tag('b c.jpg')}what changed?"
    assert split_images(text) == (["", "then ", "what changed?"], ["a/1.png", "b c.jpg"])


@pytest.mark.parametrize("text", ["", "no image here", "a literal <image> stays"])
def test_text_without_tags_is_left_as_it_is(text):
    assert split_images(text) == ([text], [])


def test_an_unclosed_tag_is_refused_with_an_excerpt():
    with pytest.raises(ValueError, match=r"not closed at '<img_path>b\.png What is this\?'; write <img_path>PATH"):
        split_images(f"{image_tag('a.png')}{IMAGE_TAG}b.png What is this?")


def test_a_tag_without_a_path_is_refused():
    with pytest.raises(ValueError, match="holds no path"):
        split_images(f"{IMAGE_TAG}{IMAGE_TAG}What is this?")


@pytest.mark.parametrize(("path", "message"), [("", "empty"), (" ", "empty"), (f"a{IMAGE_TAG}.png", "rename the file")])
def test_a_path_that_could_not_be_read_back_is_not_written(path, message):
    with pytest.raises(ValueError, match=message):
        image_tag(path)


@pytest.mark.parametrize(
    ("raw", "record"),
    [
        ({"input": "q", "output": "a"}, Record("q", "a")),
        ({"instruction": "Say: ", "input": "q", "output": "a"}, Record("Say: q", "a")),
        ({"instruction": "Say hi", "output": "hi", "source": 3}, Record("Say hi", "hi")),
        ({"input": "", "output": "a"}, Record("", "a")),
    ],
)
def test_a_legacy_instruction_goes_directly_before_the_input(raw, record):
    before = copy.deepcopy(raw)
    assert parse_record(raw) == record
    assert raw == before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["q", "a"], "must be an object with 'input' and 'output', not an array"),
        ({"output": "a"}, "'input' is missing"),
        ({"input": "q"}, "'output' is missing"),
        ({"input": None, "output": "a"}, "'input' must be a string, not null"),
        ({"input": "q", "output": 7}, "'output' must be a string, not a number"),
        ({"input": "q", "output": True}, "'output' must be a string, not true or false"),
        ({"input": "q", "output": " \n"}, "'output' is empty"),
        ({"instruction": {}, "input": "q", "output": "a"}, "'instruction' must be a string, not an object"),
    ],
)
def test_a_wrong_field_is_named(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_record(raw)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"b": "é\u2028"}]',
        '\n [\n{"a": 1},\n{"b": "é\u2028"}\n]\n',
        '{"a": 1}\n{"b": "é\u2028"}',
        '\ufeff\n{"a": 1}\r\n\r\n{"b": "é\u2028"}\r\n',
    ],
    ids=["array", "array over lines", "lines", "lines with BOM, blanks and CRLF"],
)
def test_an_array_and_json_lines_read_the_same(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_bytes(text.encode())
    assert read_json_array(path) == [{"a": 1}, {"b": "é\u2028"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a" 2}]', r"line 2, column 7: Expecting ':' delimiter, found '2}\]'"),
        (b'[{"a": 1}', r"line 1, column 10: .* found the end"),
        (b'{"a": 1}\n\n{"a": }\n', r"line 3, column 7: Expecting value, found '}'"),
        (b'{"a": 1} {"a": 2}', r"line 1, column 10: Extra data"),
        (b'"text"', r"starts with '\"text\"'; it must hold a JSON array"),
        (b" \n", "is empty"),
        (b"[\xff]", r"is not UTF-8 text \(byte 1\)"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_place(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json_array(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json does not exist"):
        read_json_array(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_json_array(tmp_path)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "data.json"
    write_json(path, [{"input": "où?", "output": "là"}])
    assert path.read_text(encoding="utf-8") == '[\n {\n  "input": "où?",\n  "output": "là"\n }\n]'
    assert read_json_array(path) == [{"input": "où?", "output": "là"}]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, ["old"])
    with pytest.raises(TypeError):
        write_json(path, ["new", object()])
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]
    assert json.loads(path.read_text()) == ["old"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "data.json", [])
    assert (tmp_path / "data.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_records_do_not_import_torch():
    code = "import sys, instruction_dataset.records, instruction_dataset.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
