"""Two ranks train what one rank with twice the batch trains, where batches of a rank have no image too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import CLOSE, ROOT, TEXT_ONLY, as_flags, question, scalars, train, weights, write_mixture, write_pictures

STEPS = 4
"""Of two epochs over eight records, in batches of four."""


@pytest.fixture(scope="module")
def flags(toy_flags, tmp_path_factory) -> list[str]:
    """Two epochs of eight records, of which six have no image."""
    folder = tmp_path_factory.mktemp("ranks")
    write_pictures(folder)
    data = write_mixture(folder, ranks=[question("red"), question("blue"), *TEXT_ONLY * 3])
    return [*toy_flags, *as_flags(instruction_data=data, num_epochs=2, multiturn_augmentation=0)]


@pytest.fixture(scope="module")
def single(flags, runs) -> Path:
    """The run of one rank."""
    return train(flags, run_name=runs / "single", batch_size=4)


@pytest.fixture(scope="module")
def double(flags, runs) -> Path:
    """The run of two ranks, which take two micro-batches of one record to a step."""
    run = runs / "double"
    script = ROOT / "open_flamingo" / "instruction_tuning" / "train.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = as_flags(run_name=run, batch_size=1, gradient_accumulation_steps=2)
    subprocess.run(
        [sys.executable, *torchrun, str(script), *flags, *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return run


@pytest.mark.parametrize("tag", ["train/loss", "train/accuracy", "train/lr", "train/grad_norm"])
def test_two_ranks_log_what_one_rank_with_twice_the_batch_logs(single, double, tag):
    assert len(scalars(double, tag)) == STEPS
    assert scalars(double, tag) == pytest.approx(scalars(single, tag), rel=1e-4)


def test_two_ranks_end_with_the_weights_of_one_rank_with_twice_the_batch(single, double):
    torch.testing.assert_close(weights(double, 1), weights(single, 1), **CLOSE)


def test_two_ranks_write_one_run_folder(double):
    assert {path.name for path in double.iterdir()} == {
        "train.log",
        "config.json",
        "tensorboard",
        "checkpoint_0.pt",
        "checkpoint_1.pt",
    }
    assert len(list((double / "tensorboard").iterdir())) == 1
    assert (double / "train.log").read_text().count("saved ") == 2
