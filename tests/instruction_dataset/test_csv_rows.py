"""CSV files as rows: fields by the names of the header, and unsound files refused in one sentence."""

import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.readers import csv_rows
from instruction_dataset.records import Record


def write(folder, data):
    file = folder / "table.csv"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def test_fields_keep_quoted_commas_quotes_line_breaks_and_every_script(tmp_path):
    file = write(tmp_path, '\ufeffa,b\r\n"x, ""y""\nz",北京 🙂\r\n1,\r\n')
    assert [(row.value, row.number) for row in csv_rows(file)] == [
        ({"a": 'x, "y"\nz', "b": "北京 🙂"}, 1),
        ({"a": "1", "b": ""}, 2),
    ]


def test_the_nameless_index_that_pandas_writes_is_a_column_like_others(tmp_path):
    assert [row.value for row in csv_rows(write(tmp_path, ",a\n0,x\n"))] == [{"": "0", "a": "x"}]


def test_a_column_that_is_missing_or_cut_off_is_named_by_the_row(tmp_path):
    whole, cut = csv_rows(write(tmp_path, "a,b\n1,2\n3\n"))
    with pytest.raises(ValueError, match=r"^field 'c' is missing$"):
        whole.text("c")
    with pytest.raises(ValueError, match=r"^field 'b' is missing$"):
        cut.text("b")


def test_a_row_with_more_fields_than_the_header_is_malformed_and_the_others_are_read(tmp_path):
    table = csv_rows(write(tmp_path, b"a,b\n1,2\n1,2,3\n4,5\n"))
    job = Job(skip_bad=True)
    assert list(job.each(table, lambda row: [Record(row.text("a"), row.text("b"))])) == [
        Record("1", "2"),
        Record("4", "5"),
    ]
    assert (job.read, job.malformed) == (3, 1)
    assert job.bad == [f"{tmp_path / 'table.csv'}, record 2: it has more fields than the header; quote its commas"]


def test_a_field_may_be_as_long_as_a_row(tmp_path):
    (row,) = csv_rows(write(tmp_path, b"a\n" + b"x" * 200_000))
    assert row.text("a") == "x" * 200_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,caf\xe9\n", " is not UTF-8 text; save it as UTF-8"),
        (b'a,b\n1,"never closed\n', ", record 1 is not sound CSV (unexpected end of data); fetch the file again"),
        (b"a,b\n", " has no rows below a header; is it the file that the source is made of?"),
        (b"", " has no rows below a header; is it the file that the source is made of?"),
    ],
)
def test_an_unsound_file_is_refused_by_its_name(tmp_path, data, message):
    file = write(tmp_path, data)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}{message}')}$"):
        list(csv_rows(file))


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path):
    file = tmp_path / "none.csv"
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} does not exist; check --source$"):
        list(csv_rows(file))
