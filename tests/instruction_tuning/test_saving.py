"""Which checkpoint a run goes on from, which ones it keeps, and where in the data it is."""

import logging
from pathlib import Path

import pytest
import torch
from toy import train

from open_flamingo.instruction_tuning.checkpoint import save_checkpoint
from open_flamingo.instruction_tuning.config import RunConfig
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.saving import (
    RESTARTS,
    Place,
    continued_from,
    epoch_path,
    is_intact,
    newest_checkpoint,
    step_path,
)

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def first_start(monkeypatch):
    """A launcher that has not started this command before."""
    for name in RESTARTS:
        monkeypatch.delenv(name, raising=False)


def written(path: Path, step: int) -> Path:
    """A checkpoint of some step at `path`, which is returned."""
    save_checkpoint(path, {"weight": torch.arange(1000.0)}, step=step)
    return path


def flip(path: Path) -> None:
    """Change one bit amid the tensors of a file."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("samples", "batches"), [(0, 0), (6, 1), (24, 4)])
def test_a_place_is_a_number_of_batches_of_each_rank(samples, batches):
    assert Place(0, samples).batches(batch_size=3, world_size=2) == batches


def test_a_place_that_other_batches_do_not_reach_is_refused():
    with pytest.raises(ValueError, match=r"stopped after 6 samples of epoch 1, which batches of 4 .* do not reach"):
        Place(1, 6).batches(batch_size=2, world_size=2)


def test_the_newest_checkpoint_is_that_of_the_most_steps_whatever_its_name(tmp_path):
    written(epoch_path(tmp_path, 10), 90)
    written(step_path(tmp_path, 99), 99)
    newest = written(step_path(tmp_path, 100), 100)
    assert newest_checkpoint(tmp_path) == newest


def test_of_two_checkpoints_of_one_step_that_of_the_epoch_is_taken(tmp_path):
    written(step_path(tmp_path, 4), 4)
    newest = written(epoch_path(tmp_path, 0), 4)
    assert newest_checkpoint(tmp_path) == newest


def test_the_best_checkpoint_and_files_of_other_names_are_not_gone_on_from(tmp_path):
    newest = written(epoch_path(tmp_path, 0), 4)
    for name in ("best.pt", "checkpoint_final.pt", "weights.pt"):
        written(tmp_path / name, 100)
    assert newest_checkpoint(tmp_path) == newest


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_half_written_checkpoint_is_removed_by_a_run_that_goes_on(tmp_path):
    newest = written(epoch_path(tmp_path, 0), 4)
    left_over = tmp_path / ".checkpoint_1.pt.partial"
    left_over.write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == newest
    assert left_over.exists()  # looking changes nothing, as a dry run does
    assert continued_from(RunConfig(run_name=tmp_path, continue_training=True), ALONE) == str(newest)
    assert not left_over.exists()


def damage_every_way(folder: Path) -> list[Path]:
    """Newer checkpoints of which none is whole: with a flipped bit, cut off, empty, without a step."""
    flipped, cut, empty, stepless = (step_path(folder, step) for step in (5, 6, 7, 8))
    for step, path in enumerate((flipped, cut, empty), start=5):
        written(path, step)
    flip(flipped)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    save_checkpoint(stepless, {"weight": torch.zeros(1)})
    return [flipped, cut, empty, stepless]


def test_damaged_checkpoints_are_stepped_over_and_named(tmp_path, caplog):
    newest = written(epoch_path(tmp_path, 0), 4)
    damaged = damage_every_way(tmp_path)
    with caplog.at_level(logging.WARNING, logger="open_flamingo"):
        assert newest_checkpoint(tmp_path) == newest
    assert len(caplog.messages) == len(damaged)
    assert all(any(str(path) in message for message in caplog.messages) for path in damaged)


def test_a_run_with_damaged_checkpoints_only_is_refused_and_keeps_them(tmp_path):
    damaged = damage_every_way(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole \(.*\): remove them to start anew"):
        newest_checkpoint(tmp_path)
    assert all(path.exists() for path in damaged)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = written(epoch_path(tmp_path, 0), 4)
    assert is_intact(path)
    flip(path)
    assert not is_intact(path)


def test_continuing_without_a_path_takes_the_newest_checkpoint_of_the_run(tmp_path):
    newest = written(epoch_path(tmp_path, 0), 4)
    assert continued_from(RunConfig(run_name=tmp_path, continue_training=True), ALONE) == str(newest)


def test_continuing_a_run_that_has_no_checkpoint_yet_starts_it(tmp_path):
    assert continued_from(RunConfig(run_name=tmp_path, continue_training=True), ALONE) is None


def test_continuing_from_a_path_takes_it_although_the_run_has_a_newer_one(tmp_path):
    written(epoch_path(tmp_path, 1), 8)
    run = RunConfig(run_name=tmp_path, continue_training=True, resume_from_checkpoint="other.pt")
    assert continued_from(run, ALONE) == "other.pt"


@pytest.mark.parametrize("variable", RESTARTS)
@pytest.mark.parametrize("flags", [{}, {"resume_from_checkpoint": "base.pt"}], ids=["alone", "with a base"])
def test_a_command_that_was_started_again_goes_on_from_its_newest_checkpoint(tmp_path, monkeypatch, variable, flags):
    newest = written(epoch_path(tmp_path, 0), 4)
    monkeypatch.setenv(variable, "1")
    assert continued_from(RunConfig(run_name=tmp_path, **flags), ALONE) == str(newest)


@pytest.mark.parametrize("variable", RESTARTS)
def test_a_command_that_was_started_again_before_its_first_checkpoint_starts_as_it_did(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert continued_from(RunConfig(run_name=tmp_path, resume_from_checkpoint="base.pt"), ALONE) is None


def test_a_command_that_continues_and_was_started_again_goes_on_from_what_it_was_given_until_it_has_saved(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(RESTARTS[0], "1")
    run = RunConfig(run_name=tmp_path, continue_training=True, resume_from_checkpoint="other.pt")
    assert continued_from(run, ALONE) == "other.pt"


def test_the_first_start_of_a_restartable_command_counts_as_none(tmp_path, monkeypatch):
    written(epoch_path(tmp_path, 0), 4)
    monkeypatch.setenv(RESTARTS[0], "0")
    with pytest.raises(ValueError, match=r"already holds checkpoint_0\.pt"):
        continued_from(RunConfig(run_name=tmp_path), ALONE)


@pytest.mark.parametrize("flags", [{}, {"resume_from_checkpoint": "base.pt"}], ids=["alone", "with a base"])
def test_a_run_is_not_written_over_another(tmp_path, flags):
    written(epoch_path(tmp_path, 0), 4)
    with pytest.raises(ValueError, match=r"already holds checkpoint_0\.pt: go on with it by --continue_training, or"):
        continued_from(RunConfig(run_name=tmp_path, **flags), ALONE)


def test_a_finished_run_has_nothing_to_go_on_with(toy_flags, short_run):
    with pytest.raises(ValueError, match=r"checkpoint_1\.pt has done 2 epochs already: raise --num_epochs to train on"):
        train([*toy_flags, "--continue_training"], run_name=short_run, num_epochs=2, lr_scheduler="cosine")


def test_the_last_checkpoints_of_steps_are_kept_and_all_of_epochs(toy_flags, tmp_path):
    run = train(toy_flags, run_name=tmp_path / "run", num_epochs=3, save_steps=1, keep_last=3)
    kept = {path.name for path in run.glob("*.pt*")}
    assert kept == {f"checkpoint_{epoch}.pt" for epoch in range(3)} | {
        f"checkpoint_step{step}.pt" for step in (4, 5, 6)
    }
