"""A step whose loss is not finite on one rank is skipped on all; so is one that has nothing to learn from."""

import math

import pytest
from launch import LAST, content, losses, only_error
from toy import scalars


@pytest.fixture(scope="module")
def poisoned(launch, flags, tmp_path_factory):
    """A run in which the loss of rank 1 is NaN at the third and at the seventh step, and its command."""
    run = tmp_path_factory.mktemp("poisoned") / "run"
    sabotage = {"nan_loss": {"rank": 1, "steps": [3, 7]}, "fingerprint": {}}
    return run, launch(flags, run, sabotage).wait()


def test_a_loss_of_nan_on_one_rank_skips_the_step_on_all(poisoned):
    run, job = poisoned
    assert job.codes == [0, 0], job.stderr
    assert set(losses(run)) == set(range(1, 13)) - {3, 7}
    assert scalars(run, "train/skipped_steps") == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert content(run / LAST)["skipped"] == [2, 0]
    assert all(state["step"] == 10 for state in content(run / LAST)["optimizer_state_dict"]["state"].values())


def test_a_loss_of_nan_on_one_rank_names_the_records_of_this_rank(poisoned):
    run, _ = poisoned
    messages = [line for line in (run / "train.log").read_text().splitlines() if "is skipped" in line]
    assert ["step 3 is skipped: the loss is nan, with " in message for message in messages] == [True, False]
    assert all("colours.json, record" in message for message in messages)


def test_the_ranks_still_agree_after_a_skipped_step(poisoned):
    one, other = poisoned[1].stdout
    assert one == other != ""


def test_ten_skipped_steps_in_a_row_end_the_run_with_its_checkpoints_whole(launch, flags, go_on, tmp_path):
    run = tmp_path / "run"
    job = launch(flags, run, {"nan_loss": {"rank": 1, "steps": list(range(2, 12))}}).wait()
    assert "10 steps in a row were skipped, the last because the loss is nan" in only_error(job)
    assert all(
        math.isfinite(tensor.sum()) for tensor in content(run / "checkpoint_step9.pt")["model_state_dict"].values()
    )
    go_on(run)
    assert content(run / LAST)["skipped"] == [8, 0]


def test_a_batch_without_supervised_tokens_on_all_ranks_is_skipped_alike(launch, flags, tmp_path):
    run = tmp_path / "run"
    job = launch(flags, run, {"unsupervised": {"ranks": [0, 1], "steps": [5]}, "fingerprint": {}}).wait()
    assert job.codes == [0, 0], job.stderr
    assert set(losses(run)) == set(range(1, 13)) - {5}
    assert content(run / LAST)["skipped"] == [1, 0]
    assert job.stdout[0] == job.stdout[1] != ""


def test_a_batch_without_supervised_tokens_on_one_rank_trains_on_the_others(launch, flags, tmp_path):
    run = tmp_path / "run"
    job = launch(flags, run, {"unsupervised": {"ranks": [1], "steps": [5]}, "fingerprint": {}}).wait()
    assert job.codes == [0, 0], job.stderr
    assert set(losses(run)) == set(range(1, 13))
    assert content(run / LAST)["skipped"] == [0, 0]
    assert job.stdout[0] == job.stdout[1] != ""
