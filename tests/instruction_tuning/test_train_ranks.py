"""Several ranks train what one rank with their batches together trains, where batches of a rank have no image too."""

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
    """Two epochs of eight records, of which six have no image, validated on the same ones."""
    folder = tmp_path_factory.mktemp("ranks")
    write_pictures(folder)
    data = write_mixture(folder, ranks=[question("red"), question("blue"), *TEXT_ONLY * 3])
    changes = as_flags(instruction_data=data, num_epochs=2, multiturn_augmentation=0)
    return [*toy_flags, *changes, *as_flags(val_data=data, val_steps=3, val_answers=1)]


@pytest.fixture(scope="module")
def single(flags, runs) -> Path:
    """The run of one rank."""
    return train(flags, run_name=runs / "single", batch_size=4)


SEVERAL = {
    "2-ddp": (2, {"batch_size": 1, "gradient_accumulation_steps": 2}),
    "2-fsdp": (2, {"batch_size": 1, "gradient_accumulation_steps": 2, "fsdp": True}),
    "4-ddp": (4, {"batch_size": 1}),
}
"""Numbers of ranks, and flags that make the same steps of four samples."""


@pytest.fixture(scope="module", params=SEVERAL)
def several(request, flags, runs) -> Path:
    """The run of several ranks, validated and shown on the way."""
    ranks, changes = SEVERAL[request.param]
    run = runs / request.param
    script = ROOT / "open_flamingo" / "instruction_tuning" / "train.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    settings = as_flags(run_name=run, logging_steps=2, **changes)
    subprocess.run(
        [sys.executable, *torchrun, str(script), *flags, *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return run


@pytest.mark.parametrize("tag", ["train/loss", "train/accuracy", "train/lr", "train/grad_norm", "val/loss"])
def test_several_ranks_log_what_one_rank_logs(single, several, tag):
    assert len(scalars(several, tag)) == (STEPS if tag.startswith("train") else 3)
    assert scalars(several, tag) == pytest.approx(scalars(single, tag), rel=1e-4)


def test_several_ranks_end_with_the_weights_of_one_rank(single, several):
    torch.testing.assert_close(weights(several, 1), weights(single, 1), **CLOSE)


def test_several_ranks_write_one_run_folder(several):
    assert {path.name for path in several.iterdir()} == {
        "train.log",
        "config.json",
        "tensorboard",
        "checkpoint_0.pt",
        "checkpoint_1.pt",
        "best.pt",
    }
    assert len(list((several / "tensorboard").iterdir())) == 1
    assert (several / "train.log").read_text().count("saved ") >= 3
