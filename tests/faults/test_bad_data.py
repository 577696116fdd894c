"""Loader workers that die, images that cannot be read, and any number of workers."""

import shutil

import pytest
from launch import LAST, content, only_error, same
from toy import RECORDS, scalars, write_mixture

BROKEN = "green.png"


@pytest.fixture
def broken_data(pictures, tmp_path):
    """The toy task, with a picture that is cut off in its middle."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    path = folder / BROKEN
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return write_mixture(folder, colours=RECORDS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_goes_on_with_another_number_of_workers(half, go_on, ends_like_the_reference, workers):
    go_on(half, f"--workers={workers}")
    ends_like_the_reference(half)


def test_a_loader_worker_that_dies_ends_the_run_with_one_clear_error(
    launch, flags, half, go_on, ends_like_the_reference
):
    settings = [*flags, "--continue_training", "--workers=1"]
    job = launch(settings, half, {"worker_killed": {"rank": 1, "sample": 2}}).wait()
    assert "a process that loads data has died" in only_error(job)
    go_on(half)
    ends_like_the_reference(half)


def test_a_truncated_image_ends_the_run_with_one_clear_error_and_it_goes_on_once_repaired(
    launch, flags, pictures, broken_data, go_on, ends_like_the_reference, tmp_path
):
    run, path = tmp_path / "run", broken_data.parent / BROKEN
    settings = [f"--instruction_data={broken_data}", "--workers=1"]
    job = launch([*flags, *settings], run).wait()
    error = only_error(job)
    assert f"image {path} cannot be read" in error
    assert "colours.json, record 2" in error
    shutil.copy(pictures / BROKEN, path)
    go_on(run, *settings)
    ends_like_the_reference(run)


def test_a_truncated_image_is_skipped_alike_with_any_number_of_workers(launch, flags, broken_data, tmp_path):
    runs = [tmp_path / f"run{workers}" for workers in (0, 2)]
    for run, workers in zip(runs, (0, 2)):
        settings = [f"--instruction_data={broken_data}", "--on_bad_image=skip", f"--workers={workers}"]
        job = launch([*flags, *settings], run).wait()
        assert job.codes == [0, 0], job.stderr
        messages = [line for line in job.stderr.splitlines() if "another sample takes the place of one" in line]
        assert all(f"image {broken_data.parent / BROKEN} " in message for message in messages)
        assert scalars(run, "data/replaced_samples")[-1] == len(messages) > 0
    one, other = (content(run / LAST) for run in runs)
    assert same(one, other)
