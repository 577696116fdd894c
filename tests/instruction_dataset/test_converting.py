"""Rows of a source: fields by their kinds, and files that are streamed, refused in one sentence where they are unsound."""

import codecs
import re

import pytest

from instruction_dataset.converting import Row, members, rows_at


@pytest.mark.parametrize("value", [7, 7.0, "7", "007"])
def test_a_whole_number_may_be_written_in_several_ways(tmp_path, value):
    assert Row({"id": value}, tmp_path, 1).number_of("id") == 7


def test_a_whole_number_may_be_larger_than_any_float(tmp_path):
    assert Row({"id": 10**400}, tmp_path, 1).number_of("id") == 10**400


@pytest.mark.parametrize("value", [7.5, "7.0", "", "x", True, float("nan"), float("inf"), "²"])
def test_what_is_no_whole_number_is_refused_with_what_it_is(tmp_path, value):
    with pytest.raises(ValueError, match=f"^field 'id' must be a whole number, not {re.escape(repr(value))}$"):
        Row({"id": value}, tmp_path, 1).number_of("id")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(codecs.BOM_UTF8 + b'{"rows": [{"a": 1}]}')
    assert [row.value for row in rows_at(file, "rows")] == [{"a": 1}]
    assert [(name, row.value) for name, row in members(file)] == [("rows", [{"a": 1}])]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"rows": [{"a": "caf\xe9"}]}', "is not sound JSON (lexical error: invalid bytes in UTF8 string."),
        (b'{"rows": [{"a": "\xed\xa0\xbd"}]}', "is not UTF-8 text; save it as UTF-8"),
        (b'{"rows": [{"a": 1}', "is not sound JSON (parse error: premature EOF"),
        (b'{"row": [{"a": 1}]}', "has no array 'rows' with anything in it"),
    ],
)
def test_an_unsound_file_is_refused_by_its_name(tmp_path, data, message):
    file = tmp_path / "rows.json"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{file} {message}")) as refusal:
        list(rows_at(file, "rows"))
    assert "b'" not in str(refusal.value)
