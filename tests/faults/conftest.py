"""A run of two ranks that nothing disturbed, which those that met a fault are compared with."""

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from launch import LAST, Forker, Job, content, losses, same, start
from toy import TUNING, as_flags, write_json_file

FOURTH_SAVE = 7
"""The first of the two calls of `os.fsync` of the fourth checkpoint: those of steps 3, 4 and 6 come before it.

So it is where the data has been prepared before, here by the run that nothing disturbs.
"""


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """What ranks are forked from."""
    forker = Forker(tmp_path_factory.mktemp("ranks"))
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def flags(toy_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a run of twelve steps with dropout, all but its name."""
    tuning = write_json_file(tmp_path_factory.mktemp("tuning") / "tuning.json", TUNING | {"lora_dropout": 0.1})
    settings = as_flags(
        tuning_config=tuning,
        num_epochs=3,
        train_num_samples=8,
        batch_size=1,
        lr_scheduler="cosine",
        save_steps=3,
        logging_steps=5,
    )
    return [*toy_flags, *settings]


@pytest.fixture(scope="session")
def launch(forker: Forker) -> Callable[..., Job]:
    """A function that starts two ranks: `launch(flags, run_folder, sabotage)`."""
    return partial(start, forker)


@pytest.fixture(scope="session")
def reference(launch: Callable[..., Job], flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the undisturbed run."""
    run = tmp_path_factory.mktemp("reference") / "run"
    job = launch(flags, run).wait()
    assert job.codes == [0, 0], job.stderr
    return run


@pytest.fixture(scope="session")
def ends_like_the_reference(reference: Path) -> Callable[[Path], None]:
    """A function that compares a finished run with the undisturbed one, to the bit."""

    def compare(run: Path) -> None:
        assert losses(run) == losses(reference)
        assert same(content(run / LAST), content(reference / LAST))

    return compare


@pytest.fixture(scope="session")
def killed_in_a_save(
    launch: Callable[..., Job], flags: list[str], reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run whose writing rank was killed before it could rename its fourth checkpoint, after eight steps."""
    run = tmp_path_factory.mktemp("killed") / "run"
    job = launch(flags, run, {"killed_while_saving": {"call": FOURTH_SAVE}}).wait()
    assert job.codes[0] == -signal.SIGKILL, job.stderr
    return run


@pytest.fixture
def half(killed_in_a_save: Path, tmp_path: Path) -> Path:
    """A copy of it, of one test's own: checkpoints of steps 3, 4 and 6, and a half-written one."""
    return Path(shutil.copytree(killed_in_a_save, tmp_path / "run"))


@pytest.fixture(scope="session")
def go_on(launch: Callable[..., Job], flags: list[str]) -> Callable[..., Job]:
    """A function that continues a run until it is finished; the command's end."""

    def go_on(run: Path, *changes: str) -> Job:
        job = launch([*flags, "--continue_training", *changes], run).wait()
        assert job.codes == [0, 0], job.stderr
        return job

    return go_on
