"""A run that is killed at any moment, and continued, ends as one that never was."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import ENVIRONMENT, LAST, names, until
from toy import ROOT, as_flags

SEED = 7
SCRIPT = ROOT / "open_flamingo" / "instruction_tuning" / "train.py"


def kill_at(launch, flags, run, seconds):
    """Start or continue a run, kill it after some time, and tell whether that was before its end."""
    job = launch([*flags, "--continue_training"], run)
    time.sleep(seconds)
    job.kill()
    return job.codes == [-signal.SIGKILL] * 2


@pytest.fixture(scope="module")
def duration(launch, flags, reference, tmp_path_factory) -> float:
    """The seconds that a run takes."""
    started = time.monotonic()
    launch(flags, tmp_path_factory.mktemp("timed") / "run").wait()
    return time.monotonic() - started


def kill_and_continue(launch, flags, go_on, run, moments):
    """Kill a run at each of some moments in turn, then let it finish."""
    killed = [kill_at(launch, flags, run, seconds) for seconds in moments]
    if not (run / LAST).exists():
        go_on(run)
    return sum(killed)


@pytest.mark.parametrize("share", [0.4, pytest.param(0.85, marks=pytest.mark.slow)])
def test_a_run_killed_at_some_moment_and_continued_ends_like_one_that_never_was(
    launch, flags, go_on, duration, ends_like_the_reference, tmp_path, share
):
    assert kill_and_continue(launch, flags, go_on, tmp_path / "run", [share * duration])
    ends_like_the_reference(tmp_path / "run")


@pytest.mark.slow
def test_runs_killed_at_twenty_random_moments_and_continued_end_like_one_that_never_was(
    launch, flags, go_on, duration, ends_like_the_reference, tmp_path
):
    rng = random.Random(SEED)
    for i in range(20):
        run = tmp_path / f"run{i}"
        kill_and_continue(launch, flags, go_on, run, [rng.uniform(0, duration)])
        ends_like_the_reference(run)


def test_a_run_killed_again_and_again_ends_like_one_that_never_was(
    launch, flags, go_on, ends_like_the_reference, tmp_path
):
    run = tmp_path / "run"
    for reached in ("checkpoint_step3.pt", "checkpoint_0.pt"):
        assert kill_at(launch, flags, run, 0.5)
        job = launch([*flags, "--continue_training"], run)
        until(lambda: (run / reached).exists() or job.is_over)  # noqa: B023 - called at once
        job.kill()
        assert job.codes == [-signal.SIGKILL] * 2
    go_on(run)
    ends_like_the_reference(run)


def test_a_run_killed_before_a_checkpoint_is_renamed_goes_on_from_the_one_before(half, go_on, ends_like_the_reference):
    partial = ".checkpoint_1.pt.partial"
    assert names(half) == {"checkpoint_0.pt", "checkpoint_step3.pt", "checkpoint_step6.pt", partial}
    go_on(half)
    assert partial not in names(half)
    assert f"going on from {half / 'checkpoint_step6.pt'} after 6 steps" in (half / "train.log").read_text()
    ends_like_the_reference(half)


def test_a_run_killed_right_after_a_rename_goes_on_from_the_new_checkpoint(
    launch, flags, go_on, ends_like_the_reference, tmp_path
):
    run = tmp_path / "run"
    launch(flags, run, {"killed_while_saving": {"call": 4}}).wait()
    assert names(run) == {"checkpoint_0.pt", "checkpoint_step3.pt"}
    go_on(run)
    assert f"going on from {run / 'checkpoint_0.pt'} after 4 steps" in (run / "train.log").read_text()
    ends_like_the_reference(run)


def test_a_run_killed_between_the_last_step_of_an_epoch_and_its_end_goes_on_with_the_next_one(
    launch, flags, go_on, ends_like_the_reference, tmp_path
):
    run = tmp_path / "run"
    launch([*flags, "--save_steps=4"], run, {"killed_while_saving": {"call": 3}}).wait()
    assert names(run) == {"checkpoint_step4.pt", ".checkpoint_0.pt.partial"}
    go_on(run)
    assert f"going on from {run / 'checkpoint_step4.pt'} after 4 steps" in (run / "train.log").read_text()
    ends_like_the_reference(run)


def test_torchrun_starts_a_run_again_whose_rank_was_killed_and_it_ends_like_one_that_never_was(
    flags, ends_like_the_reference, tmp_path
):
    run = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=2"]
    command = [sys.executable, *torchrun, str(SCRIPT), *flags, *as_flags(run_name=run)]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stderr=stderr)
    until(lambda: (run / "checkpoint_0.pt").exists() or process.poll() is not None)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert process.wait(timeout=120) == 0, (tmp_path / "stderr").read_text()
    assert len(re.findall("going on from .* after [0-9]+ steps", (run / "train.log").read_text())) == 1
    ends_like_the_reference(run)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
