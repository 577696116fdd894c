"""The digits as instruction data: right answers, no image in both splits, the same bytes for the same seed."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from instruction_dataset import digits
from instruction_dataset.digits import write_digits
from instruction_dataset.records import parse_record, read_json_array, split_images

SPLITS = ("train", "held_out")
ANSWERS = {"which": lambda a: a, "larger": max, "sum": lambda a, b: a + b}
QUESTIONS = {
    "which": ["", "Which digit is shown?"],
    "larger": ["", "", "Which of the two is larger?"],
    "sum": ["", "", "What is their sum?"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    assert write_digits(folder, seed=0) == folder / "train.json"
    return folder


def read(folder, name, split):
    records = [parse_record(raw) for raw in read_json_array(folder / f"{name}_{split}.json")]
    return [(*split_images(record.input), record.output) for record in records]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_is_right_by_the_labels(folder, name, split):
    labels = load_digits().target.tolist()
    for question, paths, answer in read(folder, name, split):
        shown = [labels[int(path.removeprefix("images/").removesuffix(".png"))] for path in paths]
        assert question == QUESTIONS[name]
        assert answer == str(ANSWERS[name](*shown))
        assert name != "larger" or shown[0] != shown[1]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_datasets_have_the_sizes_promised_and_no_question_twice(folder, name):
    for split, single, pairs in (("train", 1500, 3000), ("held_out", 297, 297)):
        inputs = [tuple(paths) for _, paths, _ in read(folder, name, split)]
        assert len(inputs) == len(set(inputs)) == (single if name == "which" else pairs)


def test_no_image_is_in_both_splits(folder):
    images = {
        split: {path for name in ANSWERS for _, paths, _ in read(folder, name, split) for path in paths}
        for split in SPLITS
    }
    assert images["train"].isdisjoint(images["held_out"])
    assert len(images["train"] | images["held_out"]) == 1797


def test_an_image_is_its_grid_in_dark_ink_on_white_paper_with_a_margin(folder):
    with Image.open(folder / "images" / "0007.png") as image:
        assert (image.size, image.mode, image.format) == ((224, 224), "L", "PNG")
        small = 255 - np.asarray(image.resize((12, 12), Image.Resampling.BOX), dtype=float)
    grid = np.pad(load_digits().images[7], 2) * 255 / 16
    assert np.corrcoef(small.ravel(), grid.ravel())[0, 1] > 0.95
    assert len(list((folder / "images").iterdir())) == 1797


@pytest.mark.parametrize("split", SPLITS)
def test_a_config_mixes_the_three_datasets_of_its_split_from_anywhere(folder, split):
    assert json.loads((folder / f"{split}.json").read_text()) == [
        {
            "dataset_name": f"digits-{name}",
            "json_path": str(folder.resolve() / f"{name}_{split}.json"),
            "img_dir": str(folder.resolve()),
            "ratio": ratio,
        }
        for name, ratio in (("which", 80), ("larger", 12), ("sum", 8))
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_splits(tmp_path, folder, monkeypatch):
    before = files(folder)
    write_digits(folder, seed=0)
    assert files(folder) == before
    monkeypatch.setattr(digits, "_write_images", lambda folder, pixels: None)
    write_digits(tmp_path, seed=1)
    assert (tmp_path / "which_held_out.json").read_bytes() != (folder / "which_held_out.json").read_bytes()


def test_the_command_says_what_it_made(tmp_path, capsys):
    assert digits.main(["--output", str(tmp_path)]) == 0
    train, which, *_ = capsys.readouterr().out.splitlines()
    assert train == str(tmp_path / "train.json")
    assert which == "  digits-which: 1500 records, 1500 images"


def test_an_output_that_cannot_be_written_is_one_line_with_a_remedy(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert digits.main(["--output", str(tmp_path / "file" / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}")
    assert error.endswith("give --output a folder you may write to\n")
    assert error.count("\n") == 1


def test_help_says_what_it_makes_and_needs(capsys):
    with pytest.raises(SystemExit):
        digits.main(["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert (
        "train.json and held_out.json in DIR are dataset configs. Needs scikit-learn; downloads nothing." in help_text
    )
