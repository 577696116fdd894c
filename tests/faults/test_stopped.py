"""Signals that ask a run to stop: it saves, ends well, and goes on as if it had not been stopped."""

import re
import signal

import pytest
from launch import until

CASES = {
    "SIGTERM to one rank": (signal.SIGTERM, [1], 0, 0),
    "SIGTERM to all processes": (signal.SIGTERM, [0, 1], 1, 0),
    "SIGUSR1 to all processes": (signal.SIGUSR1, [0, 1], 1, 0),
    "Ctrl-C": (signal.SIGINT, [0, 1], 1, 130),
}
"""A signal, the ranks that get it with their loader workers, the number of these, and how the command ends."""


@pytest.mark.parametrize("case", CASES)
def test_a_signal_saves_the_run_and_ends_it_and_it_goes_on(
    launch, flags, go_on, ends_like_the_reference, tmp_path, case
):
    number, ranks, workers, code = CASES[case]
    run = tmp_path / "run"
    job = launch([*flags, f"--workers={workers}"], run)
    until(lambda: (run / "checkpoint_step3.pt").exists() or job.is_over)
    job.send(number, ranks)
    job.wait()
    assert job.codes == [code, code], job.stderr
    assert "Traceback" not in job.stderr
    assert job.errors == []
    (steps,) = re.findall(r"stopped after (\d+) steps: go on with --continue_training", (run / "train.log").read_text())
    assert (run / f"checkpoint_step{steps}.pt").exists()
    go_on(run)
    ends_like_the_reference(run)
