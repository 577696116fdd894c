"""A disk that is full or takes nothing ends a run with one clear error, and costs no checkpoint that was written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import content, names, only_error, until

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 120 MiB, room for the six checkpoints that a run has at most."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path, size: int) -> None:
    """Write a file of `size` bytes, or of as many as there is room for."""
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(
            file.fileno(), 0, min(size, os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_bsize)
        )


def test_a_full_disk_ends_the_run_with_its_checkpoints_whole_and_it_goes_on_once_there_is_room(
    launch, flags, go_on, ends_like_the_reference, small_disk
):
    run, ballast = small_disk / "run", small_disk / "ballast"
    fill(ballast, 80 * MIB)
    job = launch(flags, run).wait()
    error = only_error(job)
    assert f"checkpoint {run / 'checkpoint_step6.pt'} could not be written" in error
    assert "No space left" in error
    assert names(run) == {"checkpoint_0.pt", "checkpoint_step3.pt"}
    ballast.unlink()
    go_on(run)
    ends_like_the_reference(run)


def test_a_disk_without_room_even_for_logs_ends_the_run_with_one_clear_error(
    launch, flags, go_on, ends_like_the_reference, small_disk
):
    run, ballast = small_disk / "run", small_disk / "ballast"
    job = launch(flags, run)
    until(lambda: (run / "checkpoint_0.pt").exists() or job.is_over)
    fill(ballast, 120 * MIB)
    job.wait()
    error = only_error(job)
    assert "No space left" in error
    ballast.unlink()
    go_on(run)
    ends_like_the_reference(run)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(launch, flags, half, go_on, ends_like_the_reference):
    before = content(half / "checkpoint_step6.pt")
    job = launch([*flags, "--continue_training"], half, {"file_size_limit": {"size": 10 * MIB}}).wait()
    error = only_error(job)
    assert f"checkpoint {half / 'checkpoint_1.pt'} could not be written" in error
    assert "File too large" in error
    assert ".checkpoint_1.pt.partial" not in names(half)
    assert content(half / "checkpoint_step6.pt").keys() == before.keys()
    go_on(half)
    ends_like_the_reference(half)


def test_a_run_folder_that_takes_nothing_is_refused_in_one_sentence(launch, flags, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    job = launch(flags, small_disk / "run").wait()
    assert f"the run folder {small_disk / 'run'} cannot be written" in only_error(job)
