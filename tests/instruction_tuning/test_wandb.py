"""Weights & Biases beside TensorBoard: a real run of the library, without a network."""

import tempfile
from pathlib import Path

import pytest
import torch

from open_flamingo.instruction_tuning.config import RunConfig
from open_flamingo.instruction_tuning.tracking import WANDB_ID, open_run

wandb = pytest.importorskip("wandb")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Runs stay in a folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_run_is_kept_with_its_numbers_texts_and_pictures_and_gone_on_with(offline, tmp_path):
    run = RunConfig(run_name=tmp_path / "run", report_to_wandb=True, wandb_project="flamingo")
    ids = []
    for first_step in (1, 2):
        tracker = open_run(run, {"learning_rate": 0.1}, first_step=first_step, is_main=True)
        tracker.scalars({"train/loss": 1.0 / first_step}, first_step)
        tracker.text("train/sample", "input: <image>", first_step)
        tracker.images("train/sample_images", torch.rand(1, 3, 8, 8), first_step)
        tracker.scalars({"train/lr": 0.1}, first_step + 1)  # the library counts a step as done once the next one comes
        ids.append(wandb.run.id)
        assert wandb.run.project == "flamingo"
        assert wandb.run.config["learning_rate"] == 0.1
        assert wandb.run.summary["train/loss"] == 1.0 / first_step
        tracker.close()
    assert ids[0] == ids[1] == (run.run_name / WANDB_ID).read_text()
    assert len(list(run.run_name.glob("wandb/offline-run-*"))) == 2
    assert len(list((run.run_name / "tensorboard").iterdir())) == 2


def test_checkpoints_are_handed_over_where_asked(offline, tmp_path):
    settings = {"report_to_wandb": True, "wandb_project": "flamingo", "save_checkpoints_to_wandb": True}
    run = RunConfig(run_name=tmp_path / "run", **settings)
    tracker = open_run(run, {}, first_step=1, is_main=True)
    path = run.run_name / "checkpoint_0.pt"
    path.write_bytes(b"weights")
    tracker.checkpoint(path)
    folder = wandb.run.dir
    tracker.close()
    assert (Path(folder) / path.name).read_bytes() == b"weights"
