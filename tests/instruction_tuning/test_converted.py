"""What converters write is what training takes: a mixture of all fixtures passes the check and trains."""

import re
from pathlib import Path

import pytest
from fixture_sources import NAMES, convert_fixture, write_images
from toy import as_flags, scalars, train

from instruction_dataset import check, mix
from instruction_dataset.records import parse_record, read_json_array, split_images

LIMITS = {"max_length": 512, "max_img": 16}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """The dataset config of the converted fixtures of all sources, with a picture wherever a record names one."""
    folder = tmp_path_factory.mktemp("converted")
    files, flags = [], []
    for name in NAMES:
        file = convert_fixture(name, folder / name)
        made = folder / name / "made"
        images = made if made.is_dir() else folder / name / "images"
        named = [path for row in read_json_array(file) for path in split_images(parse_record(row).input)[1]]
        write_images(images, [path for path in named if not (images / path).exists()])
        files.append(f"{file}=1")
        flags.append(f"--img_dir={name}={images}")
    assert mix.main([*files, *flags, f"--output={folder / 'mixture.json'}"]) == 0
    return folder / "mixture.json"


def test_the_check_finds_nothing_that_would_fail(mixture, tiny_lm, capsys):
    flags = as_flags(**LIMITS, tokenizer=tiny_lm, workers=1)
    assert check.main([str(mixture), *flags]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_two_steps_train_over_the_mixture_of_all(mixture, toy_flags, tmp_path):
    # equal ratios draw as many records of each source
    sizes = {"batch_size": len(NAMES), "train_num_samples": 2 * len(NAMES), "multiturn_augmentation": 0}
    settings = LIMITS | sizes | {"resampler_latents": 4, "resampler_depth": 1}
    run = train(toy_flags, run_name=tmp_path / "run", instruction_data=mixture, **settings, logging_steps=1)
    assert len(scalars(run, "train/loss")) == 2
    table = re.findall(r"^([\w-]+) \(input/output\) +\d+ +(\d+)", (run / "train.log").read_text(), re.MULTILINE)
    assert dict(table) == dict.fromkeys(NAMES, "2")
