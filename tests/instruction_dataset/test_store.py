"""A store gives back what the source holds, is built once, and a build that was killed leaves nothing that reads wrongly."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instruction_dataset.records import Record
from instruction_dataset.store import open_records

ROWS = [{"input": f"What is {i}?", "output": f"It is {i}."} for i in range(9)]
RECORDS = [Record(row["input"], row["output"]) for row in ROWS]
OPEN = "import sys; from pathlib import Path; from instruction_dataset.store import open_records; "


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return write_lines(tmp_path / "data.jsonl", ROWS)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def test_records_are_those_of_the_source(source, cache):
    store = open_records(source, cache)
    assert list(store) == store[:] == RECORDS
    assert [store[i] for i in range(len(store))] == RECORDS
    assert (store[-1], store[2:7:2]) == (RECORDS[-1], RECORDS[2:7:2])
    with pytest.raises(IndexError):
        store[len(RECORDS)]
    assert store.formats == {"input/output": len(ROWS)}


def test_a_folder_of_shards_is_one_source_and_each_record_knows_its_file(tmp_path, cache):
    shards = tmp_path / "shards"
    shards.mkdir()
    write_lines(shards / "a.jsonl", ROWS[:4])
    (shards / "b.jsonl").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS[4:]).encode()))
    store = open_records(shards, cache)
    assert list(store) == RECORDS
    assert [store.where(i) for i in (0, 3, 4, 8)] == [
        f"{shards / name}, record {number}"
        for name, number in (("a.jsonl", 1), ("a.jsonl", 4), ("b.jsonl", 1), ("b.jsonl", 5))
    ]


def test_equal_content_elsewhere_is_the_same_store_under_its_own_name(source, tmp_path, cache):
    first = open_records(source, cache)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    second = open_records(copy, cache)
    assert first.folder == second.folder
    assert second.where(2) == f"{copy}, record 3"


def test_changed_content_is_another_store_also_where_its_length_stays(source, cache):
    before = open_records(source, cache)
    source.write_text(source.read_text().replace("It is 3.", "It is 4."))
    after = open_records(source, cache)
    assert (before[3], after[3]) == (RECORDS[3], Record("What is 3?", "It is 4."))


def test_a_malformed_record_is_refused_with_its_place_and_leaves_no_store(source, cache):
    write_lines(source, [*ROWS, {"input": "q", "output": ""}])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"data\.jsonl, record 10: .*'output' is empty"):
            open_records(source, cache)
    assert [path.name for path in (cache / "records").iterdir() if path.is_dir()] == ["digests"]


def test_processes_that_want_the_same_store_at_once_all_get_it(tmp_path, cache):
    big = write_lines(tmp_path / "big.jsonl", ROWS * 2000)
    command = [sys.executable, "-c", f"{OPEN}print(len(open_records(Path(sys.argv[1]), Path(sys.argv[2]))))"]
    running = [subprocess.Popen([*command, big, cache], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [str(len(ROWS) * 2000)] * 3
    stores = [path for path in (cache / "records").iterdir() if path.is_dir() and path.name != "digests"]
    assert len(stores) == 1


def test_a_build_killed_at_any_point_leaves_no_store_that_reads_wrongly(tmp_path, cache):
    rows = [{"input": f"What is {i}?", "output": f"It is {i}."} for i in range(60_000)]
    big = write_lines(tmp_path / "big.jsonl", rows)
    ready = f"{OPEN}print('go', flush=True); open_records(Path(sys.argv[1]), Path(sys.argv[2]))"
    killed = 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", ready, big, cache], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 * attempt)
        process.kill()
        killed += process.wait() != 0
        folders = [path for path in (cache / "records").glob("*") if path.is_dir() and len(path.name) == 32]
        for folder in folders:
            assert {file.name for file in folder.iterdir()} == {"records.arrow", "about.json"}
    assert killed > 0
    store = open_records(big, cache)
    assert len(store) == len(rows)
    assert [store[i] for i in (0, 4095, 4096, 59_999)] == [Record(**rows[i]) for i in (0, 4095, 4096, 59_999)]
    assert not list((cache / "records").glob("*.partial"))
