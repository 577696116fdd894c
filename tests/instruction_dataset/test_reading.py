"""Reading streams: whatever the file's kind and wherever a chunk ends, the rows are those of the whole file."""

import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruction_dataset import reading
from instruction_dataset.reading import read_rows, source_files

ROWS = [{"a": 1, "b": 'é\u2028"\\ \U0001f600'}, {"a": -2.5e10, "b": [[], {}, [None, True]]}]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)
WRITTEN = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 0, 3])})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file to write again and again."""
    return tmp_path_factory.mktemp("reading") / "data"


@pytest.fixture(scope="module", autouse=True)
def margin():
    """A margin as small as is right, so that short files have borders too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MARGIN", 16)
        yield


def rows_of(file, content, chunk):
    """The rows of a file of this content, read in chunks of this size."""
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", chunk)
        return list(read_rows(file))


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(VALUES, max_size=6), how=WRITTEN, chunk=st.integers(1, 70), bom=st.booleans(), packed=st.booleans()
)
def test_an_array_of_any_values_reads_like_json_load(file, rows, how, chunk, bom, packed):
    content = b"\xef\xbb\xbf" * bom + json.dumps(rows, **how).encode("utf-8", "replace")
    expected = json.load(io.BytesIO(content))
    assert rows_of(file, gzip.compress(content) if packed else content, chunk) == expected


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(OBJECTS, min_size=1, max_size=6), end=st.sampled_from(["\n", "\r\n", "\n \n\n"]), data=st.data())
def test_json_lines_of_any_objects_read_like_json_loads_of_each(file, rows, end, data):
    how = {"ensure_ascii": data.draw(st.booleans())}
    content = end.join(json.dumps(row, **how) for row in rows) + data.draw(st.sampled_from(["", end]))
    raw = content.encode("utf-8", "replace")
    expected = [json.loads(line) for line in raw.decode().split("\n") if line.strip()]
    packed = gzip.compress(raw) if data.draw(st.booleans()) else raw
    assert rows_of(file, packed, data.draw(st.integers(1, 70))) == expected


@pytest.mark.parametrize("chunk", range(1, 130))
def test_every_chunk_border_gives_the_same_rows(file, chunk):
    odd = ["\U0001f600é", "\\ud83d\\ude00", '\\"]},', "\\\\", -1.25e-10, -12345678901, 0.5, None, True]
    text = json.dumps([*odd, {"k": odd}, [odd]], ensure_ascii=False, indent=1) + " \n"
    text = text.replace("[", '[-1e-5 , -0, NaN, -Infinity, "\\ud83d\\ude00\\u00e9", ', 1)
    assert repr(rows_of(file, text.encode(), chunk)) == repr(json.loads(text))


def test_a_number_longer_than_a_chunk_is_not_cut(file):
    text = f"[{'2' * 4301}.5, {'1' * 4000}, 3]"
    # Python refuses an integer of 4301 digits; these chunks end before the point, after it, and within the digits
    for chunk in (4302, 4303, 7):
        assert rows_of(file, text.encode(), chunk) == json.loads(text)


def test_the_content_tells_the_kind_and_not_the_name(tmp_path):
    contents = {
        "array.jsonl.gz": json.dumps(ROWS).encode(),
        "lines.json": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
        "array.json": gzip.compress(json.dumps(ROWS).encode()),
        "two-members.jsonl": b"".join(gzip.compress(json.dumps(row).encode() + b"\n") for row in ROWS),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert list(read_rows(tmp_path / name)) == ROWS


def test_parquet_gives_its_rows_with_null_for_what_is_absent(tmp_path):
    rows = [{"id": i, "turns": [{"from": "human", "value": f"q{i}"}] * (i % 3), "image": None} for i in range(1000)]
    rows[7]["image"] = "a.jpg"
    for name in ("rows.parquet", "named.json"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=300)
        assert list(read_rows(tmp_path / name)) == rows


def test_an_empty_array_has_no_rows(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert list(read_rows(tmp_path / "a.json")) == []


@pytest.mark.parametrize("kind", ["array", "lines", "gzip", "parquet"])
def test_memory_stays_flat_in_a_large_file(tmp_path, kind):
    file = tmp_path / "large"
    rows = [{"input": f"question {i}", "output": "answer " * 100} for i in range(40_000)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        lines = [json.dumps(row) for row in rows]
        content = ("\n".join(lines) if kind == "lines" else f"[{', '.join(lines)}]").encode()
        file.write_bytes(gzip.compress(content, 1) if kind == "gzip" else content)
        assert len(content) > 28e6
    del rows
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(file)) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_row_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_ROW", 5000)
    monkeypatch.setattr(reading, "CHUNK_BYTES", 500)
    file = tmp_path / "data.json"
    for text in ('[{"a": [' + "{}, " * 10_000, '{"a": "' + "b" * 10_000):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"line 1, column \d: A record is longer than 5000 characters"):
            list(read_rows(file))


def test_a_file_is_its_own_source_and_a_folder_its_shards_by_name(tmp_path):
    names = ["b-10.jsonl", "a.jsonl", "c.JSONL"]
    for name in [*names, ".hidden.parquet", "README.md", "cat.jpg", "LICENSE"]:
        (tmp_path / name).write_text("{}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").touch()
    assert source_files(tmp_path) == [tmp_path / name for name in sorted(names)]
    assert source_files(tmp_path / "README.md") == [tmp_path / "README.md"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds no data files; it must hold files of one kind"),
        (["a.json", "b.jsonl"], r"mixes \.json and \.jsonl files; keep one kind"),
        (["a.json", "b.json.gz"], r"mixes \.json and \.json\.gz files"),
        (["a.json", "b.csv"], r"holds b\.csv, which is not"),
        (["a.json", "b.json.part"], r"holds b\.json\.part, which is not"),
        (["a.json", "train/b.json"], r"holds data files in its folder train; name that folder"),
    ],
)
def test_a_folder_that_would_leave_data_out_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=message) as refusal:
        source_files(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_source_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing does not exist"):
        source_files(tmp_path / "nothing")
    (tmp_path / "a.json").touch()
    for path in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(ValueError, match=r"a\.json is empty"):
            source_files(path)


def test_gzip_of_parquet_is_read_like_parquet(tmp_path):
    rows = [{"input": f"What is {i}?", "output": "A number."} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    (tmp_path / "data.parquet.gz").write_bytes(gzip.compress((tmp_path / "data.parquet").read_bytes()))
    assert list(read_rows(tmp_path / "data.parquet.gz")) == rows
