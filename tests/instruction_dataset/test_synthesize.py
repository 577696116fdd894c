"""Made-up data: the same bytes for the same seed, counts that add up, a realistic skew, and whole or not at all."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from instruction_dataset.formats import parse_row
from instruction_dataset.records import split_images
from instruction_dataset.synthesize import SHAPES, main

ROOT = Path(__file__).parents[2]
NAMES = [shape.name for shape in SHAPES]
PAIRS = [shape.name for shape in SHAPES if shape.turns is None]
RECORDS = 2003
COMMAND = (sys.executable, "-m", "instruction_dataset.synthesize")
SMALL = ("--records", str(RECORDS), "--images", "12", "--image_size", "64", "--workers", "2")


def write(folder, *flags):
    assert main(["--output", str(folder), *SMALL, *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "up")


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def texts(row):
    """The input with its images, and the output; of a dialogue, all its turns."""
    turns = parse_row(row).turns
    return "".join(said for said, _ in turns), "".join(answer for _, answer in turns)


def files(folder):
    """The bytes of all that was written but the config, which names the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.json")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def start(folder, *flags):
    """The command in a process group of its own, once it writes records."""
    arguments = [*COMMAND, "--output", str(folder), *SMALL, *flags]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "captions.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    return process


def test_the_same_seed_gives_the_same_bytes_however_many_processes_write(tmp_path, folder):
    again = files(write(tmp_path / "again", "--workers", "1"))
    assert again == files(folder)
    assert len(again) == len(SHAPES) + 12


def test_another_seed_gives_other_bytes_everywhere(tmp_path, folder):
    before, after = files(folder), files(write(tmp_path / "other", "--seed", "1"))
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] == after[path]] == []


def test_an_array_holds_the_same_records_as_json_lines(tmp_path, folder):
    array = write(tmp_path / "array", "--format", "json")
    for name in NAMES:
        assert json.loads((array / f"{name}.json").read_text(encoding="utf-8")) == rows(folder, name)


def test_the_datasets_sum_to_the_records_asked_for_and_differ_in_size_fiftyfold(folder):
    sizes = [len(rows(folder, name)) for name in NAMES]
    assert sum(sizes) == RECORDS
    assert max(sizes) >= 50 * min(sizes) > 0


def test_dialogues_keep_their_turns_and_some_are_long(folder):
    dialogues = [parse_row(row).turns for row in rows(folder, "dialogues")]
    assert [2 * len(turns) for turns in dialogues] == [len(row["conversations"]) for row in rows(folder, "dialogues")]
    assert max(map(len, dialogues)) >= 5


def test_lengths_have_a_long_tail(folder):
    for name in PAIRS:
        for lengths in zip(*(map(len, texts(row)) for row in rows(folder, name))):
            assert statistics.median(lengths) < statistics.mean(lengths)
    overall = [sum(map(len, texts(row))) for name in NAMES for row in rows(folder, name)]
    assert statistics.median(overall) < 0.7 * statistics.mean(overall)
    assert 600 < statistics.mean(overall) < 1100
    assert max(overall) > 3000


def test_words_are_few_common_ones_and_a_tail_of_rare_ones(folder):
    words = (
        " ".join(row["output"] for row in rows(folder, "captions")).lower().replace(".", "").replace(",", "").split()
    )
    counts = sorted(Counter(words).values(), reverse=True)
    assert sum(counts[:100]) > 0.4 * len(words)
    assert len(counts) > 2000


def test_records_name_none_to_eight_different_images_that_exist(folder):
    amounts = []
    for name in NAMES:
        for row in rows(folder, name):
            paths = split_images(texts(row)[0])[1]
            assert len(paths) == len(set(paths))
            assert all((folder / "images" / path).is_file() for path in paths)
            amounts.append(len(paths))
    assert {0, 1, 2, 8} <= set(amounts) <= set(range(9))
    assert amounts.count(1) > amounts.count(2) > amounts.count(8)


def test_no_record_repeats_an_image_even_where_there_are_few(tmp_path):
    few = write(tmp_path / "few", "--images", "3")
    for row in rows(few, "comparisons"):
        paths = split_images(row["input"])[1]
        assert len(paths) == len(set(paths)) <= 3


def test_images_are_jpegs_of_both_orientations_about_the_size_asked_for(folder):
    sizes = []
    for path in (folder / "images").rglob("*.*"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.append(image.size)
    assert len(sizes) == 12
    assert all(32 < side < 128 for size in sizes for side in size)
    assert {width > height for width, height in sizes} == {True, False}


def test_the_config_names_every_dataset_from_anywhere(folder):
    assert json.loads((folder / "config.json").read_text()) == [
        {
            "dataset_name": shape.name,
            "json_path": str(folder / f"{shape.name}.jsonl"),
            "img_dir": str(folder / "images"),
            "ratio": shape.ratio,
        }
        for shape in SHAPES
    ]
    assert sum(shape.share for shape in SHAPES) == 1000


def test_the_command_says_where_the_config_is(tmp_path, capsys):
    write(tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    assert capsys.readouterr().out == f"{config}: {RECORDS} records in 6 datasets, 12 images\n"


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path, folder, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, folder):
        before = files(taken)
        assert main(["--output", str(taken), *SMALL]) == 1
        error = capsys.readouterr().err
        assert error == f"error: {taken} is not empty; empty it, or give --output another folder\n"
        assert files(taken) == before


def test_an_output_that_cannot_be_written_is_one_line_with_a_remedy(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file" / "out"), *SMALL]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}")
    assert error.count("\n") == 1


def test_a_killed_run_leaves_no_config_and_the_next_run_starts_over_in_its_folder(tmp_path, folder):
    out = tmp_path / "out"
    process = start(out, "--records", "3000000", "--images", "40")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(out.iterdir())
    assert not (out / "config.json").exists()
    assert files(write(out)) == files(folder)


def test_a_killed_parent_takes_its_workers_with_it(tmp_path):
    process = start(tmp_path / "out", "--records", "3000000")
    process.kill()
    # its workers hold the same pipe: it ends only when the last of them has
    process.communicate(timeout=30)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_the_folder_empty(tmp_path, number, code):
    process = start(tmp_path / "out", "--records", "3000000")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith("interrupted\n") == (number == signal.SIGINT)
    assert "Traceback" not in error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--records", "199", "at least 200, not '199'"),
        ("--records", "1e6", "at least 200, not '1e6'"),
        ("--images", "0", "at least 1, not '0'"),
        ("--seed", "-1", "at least 0, not '-1'"),
    ],
)
def test_a_number_that_makes_no_data_is_refused(tmp_path, capsys, flag, value, expected):
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path / "out"), *SMALL, flag, value])
    assert caught.value.code == 2
    assert f"expected a whole number of {expected}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m instruction_dataset.synthesize --records 1000000 --output" in capsys.readouterr().out
