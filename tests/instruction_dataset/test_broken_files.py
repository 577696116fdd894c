"""Broken files: each ends in one ValueError of one sentence that names the file and the place, whatever is wrong."""

import gzip
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruction_dataset import reading
from instruction_dataset.reading import read_rows

ROWS = [{"input": f"question {i} é", "output": ["a", {"b": -1.5e3}, None]} for i in range(9)]
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
PLACE = r"line \d+, column \d+: "


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file to write again and again."""
    return tmp_path_factory.mktemp("broken") / "data"


def outcome(file, content, chunk=reading.CHUNK_BYTES):
    """The rows of a file of this content, and the sentence of the refusal that they end in, if they do."""
    file.write_bytes(content)
    rows, refusals = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", chunk)
        try:
            rows.extend(read_rows(file))
        except ValueError as error:
            refusals.append(error)
    for refusal in refusals:
        assert type(refusal) is ValueError
        assert str(refusal).startswith(str(file))
        assert "\n" not in str(refusal)
        assert "; " in str(refusal)
        return rows, str(refusal)
    return rows, None


def whole(content):
    """What the standard library makes of the content: its rows, or None where it is broken."""
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip(" \t\r\n")[:1] == "{":
            return [json.loads(line) for line in text.split("\n") if line.strip(" \t\r")]
        rows = json.loads(text)
        return rows if isinstance(rows, list) else None
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("chunk", [1, 5, 64, reading.CHUNK_BYTES])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2,]", r"line 1, column 7: Expecting value, found '\]'"),
        (b"[,1]", r"line 1, column 2: Expecting value"),
        (b"[1 2]", r"line 1, column 4: Expecting ',' delimiter, found '2\]'"),
        (b'[{"a": 1}\n\n {"a": 2}]', r"line 3, column 2: Expecting ',' delimiter"),
        (b'[{"a": 1,}]', PLACE),
        (b"[{a: 1}]", r"line 1, column 3: Expecting property name"),
        (b"[{'a': 1}]", r"line 1, column 3: Expecting property name"),
        (b"[1]]", r"line 1, column 4: Extra data, found '\]'"),
        (b"[1]\n[2]", r"line 2, column 1: Extra data, found '\[2\]'"),
        (b"[1] x" + b" " * 99, r"line 1, column 5: Extra data"),
        (b"[", r"line 1, column 2: Expecting value, found the end"),
        (b"[1", r"line 1, column 3: Expecting ',' delimiter, found the end"),
        (b"[1,\n", r"line 2, column 1: Expecting value, found the end"),
        (b'[{"a": "b', r"line 1, column 8: Unterminated string"),
        (b'[{"a": "b\n"}]', r"line 1, column 10: Invalid control character at, found '\\n\"}\]'"),
        (b'["\\x"]', r"line 1, column 3: Invalid \\escape"),
        (b'["\\u12g4"]', r"line 1, column 4: Invalid \\uXXXX escape"),
        (b"[01]", PLACE),
        (b"[-]", PLACE),
        (b"[1.]", PLACE),
        (b"[tru]", r"line 1, column 2: Expecting value"),
        (b"[1]\x00", r"line 1, column 4: Extra data"),
        (b"[" + b"1" * 5000 + b"]", r"line 1, column 2: A number has too many digits"),
        (b"[" * 100_000, r"line 1, column 2: Brackets are nested too deeply"),
        (b"{" + b'"a":{' * 100_000, r"line 1, column 1: Brackets are nested too deeply"),
        (b'{"a": 1}\n{"a": 1\n{"a": 1}', r"line 2, column 8: .* found the end; give each record one whole line"),
        (b'{\n"a": 1}', r"line 1, column 2: .* found the end; give each record one whole line"),
        (b'\n\n {"a": 1} {"a": 2}', r"line 3, column 11: Extra data"),
        (b'{"a": 1}\rx', r"line 1, column 10: Extra data"),
        (b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}", r"line 2, column 1: A number has too many digits"),
        (b"[1]\x1f", r"Extra data"),
        (b"", r"is empty; it must hold a JSON array or JSON Lines"),
        (b"\xef\xbb\xbf \n\t", r"is empty"),
        (b"\xef\xbb\xbf\xef\xbb\xbf[]", r"starts with '\\ufeff\[\]'"),
        (b"<html>\nnot found", r"starts with '<html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid", r"is a Git LFS pointer, not the data; run 'git lfs pull'"),
        (b"7", r"starts with '7'; it must hold a JSON array"),
        (b"PK\x03\x04", r"starts with 'PK"),
        (b'["\xc3\xa9", "\xff"]', r"is not UTF-8 text \(byte 8\); save it as UTF-8"),
        (b'["\xc3', r"is not UTF-8 text \(byte 2\)"),
        (b'{"a": "\xed\xa0\x80"}', r"is not UTF-8 text \(byte 7\)"),
        ('[{"a": 1}]'.encode("utf-16"), r"is not UTF-8 text \(byte 0\)"),
        ('[{"a": 1}]'.encode("utf-16-le"), r"line 1, column 2: "),
        ('["é"]'.encode("latin-1"), r"is not UTF-8 text \(byte 2\)"),
        (b"PAR1", r"row 1 or after: not sound Parquet"),
        (b"PAR1" + b"x" * 100 + b"PAR1", r"row 1 or after: not sound Parquet"),
        (b"\x1f\x8b", r"cut short or damaged in its gzip data"),
        (b"\x1f\x8b\x08" + b"\0" * 30, r"cut short or damaged in its gzip data"),
        (gzip.compress(b"[1, 2") + b"", r"line 1, column 6: Expecting ',' delimiter, found the end"),
        (gzip.compress(b"[1]") + b"rest", r"gzip data \(Not a gzipped file"),
        (gzip.compress(gzip.compress(b"[1]")), r"is not UTF-8 text \(byte 1\)"),
    ],
)
def test_what_is_broken_is_named_with_its_place_at_any_chunk_size(file, content, message, chunk):
    if len(content) > 1000 and chunk < reading.CHUNK_BYTES:
        chunk = 1000
    _, sentence = outcome(file, content, chunk)
    assert sentence is not None
    assert re.search(message, sentence)


@settings(deadline=None, max_examples=500)
@given(data=st.data(), content=st.sampled_from([ARRAY, LINES]), chunk=st.integers(1, 200))
def test_damaged_json_gives_the_rows_of_the_standard_library_or_one_refusal(file, data, content, chunk):
    at = data.draw(st.integers(0, len(content) - 1))
    until = data.draw(st.integers(at, min(at + 20, len(content))))
    put = data.draw(
        st.binary(max_size=3) | st.sampled_from([b"", b",", b"]", b"[", b'"', b"\\", b"\n", b"{", b"}", b"1"])
    )
    damaged = content[:at] + put + content[until:]
    rows, sentence = outcome(file, damaged, chunk)
    expected = whole(damaged)
    assert (sentence is None) == (expected is not None)
    assert expected is None or rows == expected


@pytest.mark.parametrize("content", [ARRAY, LINES])
def test_a_gzip_cut_anywhere_is_refused(file, content):
    packed = gzip.compress(content)
    for length in range(2, len(packed)):
        rows, sentence = outcome(file, packed[:length])
        assert sentence is not None
        assert rows == ROWS[: len(rows)]


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, len(gzip.compress(ARRAY)) - 1), value=st.integers(0, 255))
def test_a_gzip_with_a_wrong_byte_is_refused_or_the_same(file, at, value):
    packed = bytearray(gzip.compress(ARRAY, mtime=0))
    packed[at % len(packed)] = value
    rows, sentence = outcome(file, bytes(packed))
    assert sentence is not None or rows == ROWS


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The bytes of a sound Parquet file with checksums, and its rows."""
    path = tmp_path_factory.mktemp("sound") / "sound.parquet"
    rows = [{"input": f"question {i} é", "turns": [{"from": "a", "n": i}] * (i % 3)} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20, write_page_checksum=True)
    return path.read_bytes(), rows


def test_a_parquet_file_cut_anywhere_is_refused(file, parquet):
    content, _ = parquet
    for length in range(4, len(content), 7):
        assert outcome(file, content[:length])[1] is not None


def test_a_parquet_file_with_wrong_bytes_is_refused_or_has_all_its_rows(file, parquet):
    content, rows = parquet
    random.seed(0)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(random.choice([1, 1, 4])):
            damaged[random.randrange(len(content))] = random.randrange(256)
        if damaged[:4] == b"PAR1":
            found, sentence = outcome(file, bytes(damaged))
            assert sentence is not None or len(found) == len(rows)


def test_a_file_that_is_not_parquet_is_refused_by_its_name_too(tmp_path):
    for content in (b"", b"[1]"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet, row 1 or after: not sound Parquet \(.*\); fetch it again"):
            list(read_rows(tmp_path / "a.parquet"))


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.parquet does not exist; check the path"):
        list(read_rows(tmp_path / "nothing.parquet"))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        list(read_rows(tmp_path))


def test_the_rows_before_the_broken_one_are_given(file):
    rows, sentence = outcome(file, ARRAY[:-20], chunk=30)
    assert rows == ROWS[:-1]
    assert sentence is not None
