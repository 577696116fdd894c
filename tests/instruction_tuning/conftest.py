"""Finished training runs of the toy task that the tests of their results share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import TUNING, kept_logging, train, write_json_file


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """Commands set up logging for their whole process: undo it after each test."""
    with kept_logging():
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that tests share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def short_run(toy_flags: list[str], runs: Path) -> Path:
    """The folder of a run of two epochs of two steps, which other runs are compared with."""
    return train(toy_flags, run_name=runs / "short", num_epochs=2, lr_scheduler="cosine")


@pytest.fixture(scope="session")
def toy_run(toy_flags: list[str], runs: Path) -> Path:
    """The folder of a run that has learnt the toy task by heart."""
    return train(
        toy_flags,
        run_name=runs / "toy",
        tuning_config=write_json_file(runs / "tuning.json", TUNING),
        train_num_samples=240,
        multiturn_augmentation=0,
        batch_size=6,
        learning_rate=1e-2,
        lr_scheduler="cosine",
        logging_steps=10,
    )
