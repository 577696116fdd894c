"""Dataset inference that is killed at any moment, and started again, ends with the files of a run that never was."""

import os
import random
import resource
import shutil
import signal
import time

import pytest
from answerers import BATCHES, answered, command, end, files, folder_of, kill, start, until, write_records

from open_flamingo.instruction_tuning.answering import Item
from open_flamingo.instruction_tuning.instruction_dataset_inference import main
from open_flamingo.instruction_tuning.results import Part, read_parts

SEED = 11
NAMES = {"colours.json", "texts.json", "summary.md", "summary.html"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The dataset config, in which two records cannot be answered."""
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def flags(toy_run, data):
    """A function that gives the flags of the command: `flags(results_dir, **changes)`."""
    return lambda results, **changes: command(toy_run / "checkpoint_0.pt", data, results, **changes)


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory):
    """The results that nothing disturbed."""
    results = tmp_path_factory.mktemp("reference")
    assert main(flags(results)) == 1
    return results


@pytest.fixture(scope="module")
def killed(flags, tmp_path_factory):
    """The results of a run that was killed after three batches."""
    results = tmp_path_factory.mktemp("killed")
    processes = start(flags(results), results / "log")
    until(lambda: answered(results) >= 3, processes)
    kill(processes)
    assert 3 <= answered(results) < BATCHES
    return results


@pytest.fixture
def half(killed, tmp_path):
    """A copy of them, of one test's own."""
    return shutil.copytree(killed, tmp_path / "results")


def kill_after(flags, results, batches, seconds):
    """Start the command, kill it some time after it has written so many further batches; whether that was in time."""
    processes, before = start(flags(results), results / "log"), answered(results)
    until(lambda: answered(results) >= before + batches, processes)
    time.sleep(seconds)
    kill(processes)
    return processes[0].exitcode == -signal.SIGKILL


def test_a_run_leaves_the_results_and_the_summaries_and_nothing_else(reference):
    assert files(reference).keys() == NAMES


def test_a_run_killed_again_and_again_ends_with_the_same_files(flags, reference, tmp_path):
    rng = random.Random(SEED)
    assert kill_after(flags, tmp_path, 2, rng.uniform(0, 0.1))
    while kill_after(flags, tmp_path, 2, rng.uniform(0, 0.1)):
        pass
    assert files(tmp_path) == files(reference)


@pytest.mark.slow
def test_runs_killed_at_twenty_random_moments_end_with_the_same_files(flags, reference, tmp_path):
    rng = random.Random(SEED)
    in_time = 0
    for number in range(20):
        results = tmp_path / str(number)
        in_time += kill_after(flags, results, rng.randint(0, BATCHES), rng.uniform(0, 0.3))
        if (folder_of(results) / "parts").exists() or not folder_of(results).exists():
            assert end(start(flags(results), results / "log")) == [1]
        assert files(results) == files(reference)
    assert in_time >= 10


def test_a_killed_run_says_how_many_records_are_answered_and_goes_on_with_the_others(flags, reference, half, capsys):
    batches = answered(half)
    assert main(flags(half)) == 1
    assert f"continuing: {3 * batches} of 23 records are answered" in capsys.readouterr().err
    assert files(half) == files(reference)


@pytest.mark.parametrize("rest", ["{", '{"records": [[0, 1]], "rows": [{"inp', '{"records": [[0, 1]]\n', "\0\0\0\n"])
def test_a_batch_that_is_half_written_is_answered_again(flags, reference, half, rest):
    with (folder_of(half) / "parts" / "0.jsonl").open("a") as part:
        part.write(rest)
    main(flags(half))
    assert files(half) == files(reference)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_part_that_is_cut_anywhere_is_gone_on_with(flags, reference, half, share):
    part = folder_of(half) / "parts" / "0.jsonl"
    os.truncate(part, int(share * part.stat().st_size))
    main(flags(half))
    assert files(half) == files(reference)


def test_a_run_killed_before_its_parts_are_all_removed_ends_with_the_same_files(flags, reference, half):
    shutil.copytree(folder_of(reference), folder_of(half), dirs_exist_ok=True)
    (folder_of(half) / "parts" / "about.json").unlink()
    main(flags(half))
    assert files(half) == files(reference)


def test_a_changed_flag_starts_anew_and_is_named(flags, half, tmp_path, capsys):
    main(flags(half, seed=1, temperature=2.5))
    said = capsys.readouterr().err
    assert "starting anew: what is answered so far was answered with other --temperature, --seed" in said
    assert "continuing" not in said
    main(flags(tmp_path / "whole", seed=1, temperature=2.5))
    assert files(half) == files(tmp_path / "whole")


def test_a_checkpoint_written_anew_starts_anew(flags, half, toy_run, capsys):
    checkpoint = toy_run / "checkpoint_0.pt"
    before = checkpoint.stat().st_mtime_ns
    os.utime(checkpoint, ns=(before, before + 1))
    main(flags(half))
    os.utime(checkpoint, ns=(before, before))
    assert "was answered with other checkpoint files\n" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["tiny_lm", "tower"])
def test_a_part_of_the_model_written_anew_starts_anew_though_only_the_checkpoint_names_it(
    flags, half, part, request, capsys
):
    (file,) = request.getfixturevalue(part).glob("*.safetensors")
    before = file.stat().st_mtime_ns
    os.utime(file, ns=(before, before + 1))
    main(flags(half))
    os.utime(file, ns=(before, before))
    assert "was answered with other model files\n" in capsys.readouterr().err


def test_metrics_may_change_in_a_run_that_goes_on_and_a_wrong_one_loses_no_answer(flags, reference, half, capsys):
    file = half / "mine.py"
    file.write_text("def cut(prediction, target):\n    return target\n")
    with pytest.raises(ValueError, match="metric cut gave 'red red' for row 1"):
        main(flags(half, metrics=f"{file}:cut"))
    assert "continuing" in capsys.readouterr().err
    file.write_text("def cut(prediction, target):\n    return prediction in target\n")
    assert main(flags(half, metrics=f"{file}:cut")) == 1
    assert "continuing: 23 of 23 records are answered" in capsys.readouterr().err
    assert "| Errors | cut |" in (folder_of(half) / "summary.md").read_text()
    for name in ("colours.json", "texts.json"):
        assert files(half)[name] == files(reference)[name]


def test_ctrl_c_ends_with_code_130_keeps_the_answers_and_says_how_to_go_on(flags, reference, tmp_path):
    processes = start(flags(tmp_path), tmp_path / "log")
    until(lambda: answered(tmp_path) >= 1, processes)
    os.kill(processes[0].pid, signal.SIGINT)
    assert end(processes) == [130]
    assert "the same command goes on from there" in (tmp_path / "log.0").read_text()
    assert answered(tmp_path) >= 1
    assert end(start(flags(tmp_path), tmp_path / "log")) == [1]
    assert files(tmp_path) == files(reference)


def test_a_batch_that_finds_no_room_is_told_of_with_its_file_and_those_before_are_kept(tmp_path):
    kept = {}

    def write() -> None:
        with Part(tmp_path, 0) as part:
            for item in (Item(0, record) for record in range(8)):
                part.add([item], [row := {"input": "x" * 500}])
                kept[item] = row

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"could not be written to .*0\.jsonl \(File too large\)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(kept) > 1
    assert read_parts(tmp_path) == kept
