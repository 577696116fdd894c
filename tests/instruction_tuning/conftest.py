"""A toy task on disk, a tower with weights, and one finished training run that the tests of its results share."""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from toy import (
    RECORDS,
    TUNING,
    TUNING_CONFIGS,
    as_flags,
    kept_logging,
    train,
    write_json_file,
    write_mixture,
    write_pictures,
)


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """Commands set up logging for their whole process: undo it after each test."""
    with kept_logging():
        yield


@pytest.fixture(scope="session")
def tower(tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a vision tower with random weights that stay the same from build to build."""
    folder = tmp_path_factory.mktemp("tower")
    open_clip.add_model_config(tiny_vision)
    torch.manual_seed(0)
    clip = open_clip.create_model(tiny_vision.stem)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": json.loads(tiny_vision.read_text())}))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of each colour."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def toy_data(pictures: Path) -> Path:
    """The dataset config of the toy task."""
    return write_mixture(pictures, colours=RECORDS)


@pytest.fixture(scope="session")
def toy_flags(tower: Path, tiny_lm: Path, toy_data: Path) -> list[str]:
    """The flags of a run of two steps an epoch, all but its name."""
    return as_flags(
        vision_encoder_path=tower,
        lm_path=tiny_lm,
        instruction_data=toy_data,
        tuning_config=TUNING_CONFIGS / "from_scratch-llama.json",
        cross_attn_every_n_layers=2,
        max_length=128,
        max_img=2,
        instruction_prompt_template="guanaco-no-prompt",
        train_num_samples=-1,
        batch_size=3,
        learning_rate=1e-3,
        warmup_steps=1,
        workers=0,
    )


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
