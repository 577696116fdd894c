"""LEVIR-CC: what changed, with two labelled images or one that is made of them."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources.levir_cc import SOURCES, join

FIXTURE = Path(__file__).parents[1] / "fixtures" / "levir-cc" / "source"
FILE = "LevirCCcaptions.json"


def convert(name, folder=FIXTURE, **flags):
    job = Job(**{"split": "train", **flags})
    return list(SOURCES[name].convert(folder, job)), job


@pytest.fixture
def roots(tmp_path):
    """A folder of images, red before and blue after, and one for images that are made."""
    for side, color in (("A", "red"), ("B", "blue")):
        for number in (1, 2, 3, 4):
            path = tmp_path / "root" / "images" / "train" / side / f"train_00000{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), color).save(path)
    return {"image_root": tmp_path / "root", "image_output": tmp_path / "made"}


def test_the_label_goes_with_its_image_in_either_order():
    orders = set()
    for seed in range(8):
        for record in convert("levir-cc", seed=seed)[0]:
            (first, second, last), paths = split_images(record.input)
            labels = {first: paths[0], second.strip("\n"): paths[1]}
            assert "/A/" in labels["Before: "]
            assert "/B/" in labels["After: "]
            assert last.startswith("\n")
            orders.add(first)
    assert orders == {"Before: ", "After: "}


def test_the_longest_caption_is_the_answer_and_other_splits_are_counted():
    records, job = convert("levir-cc")
    assert records[0].output == "The scene is the same as before."
    assert job.left_out == {"the images are not of split train": 1, "the answer is empty": 1}


@pytest.mark.parametrize(
    ("layout", "size", "after"), [("beside", (5, 4), [2, 0, 5, 4]), ("below", (3, 6), [0, 2, 3, 6])]
)
def test_two_images_are_joined_whole_even_where_their_sizes_differ(layout, size, after):
    first = Image.new("RGB", (2, 2), "red")
    second = Image.new("RGB", (3, 4), "blue")
    both = join(first, second, layout)
    assert both.size == size
    assert both.crop((0, 0, 2, 2)).getcolors() == [(4, (255, 0, 0))]
    assert both.crop(after).getcolors() == [(12, (0, 0, 255))]


def test_the_made_image_is_as_the_prompt_says(roots):
    layouts = set()
    for seed in range(8):
        for record in convert("levir-cc-concatenated", seed=seed, **roots)[0]:
            (_, words), (path,) = split_images(record.input)
            with Image.open(roots["image_output"] / path) as image:
                beside = image.size == (16, 6)
                assert image.size in ((16, 6), (8, 12))
                assert image.getpixel((0, 0)) == (255, 0, 0)
                assert image.getpixel((image.width - 1, image.height - 1)) == (0, 0, 255)
            side = "left half" if beside else "upper half"
            assert words.startswith(f"The {side} of the image shows the place before, ")
            layouts.add(beside)
    assert layouts == {True, False}


def test_no_image_is_made_for_a_record_that_is_not_written(roots):
    records, _ = convert("levir-cc-concatenated", **roots)
    made = {path.relative_to(roots["image_output"]).as_posix() for path in roots["image_output"].rglob("*.png")}
    assert made == {path for record in records for path in split_images(record.input)[1]}


def test_an_image_made_by_an_earlier_run_is_kept(roots):
    records, _ = convert("levir-cc-concatenated", **roots)
    path = roots["image_output"] / split_images(records[0].input)[1][0]
    path.write_bytes(b"mine")
    assert convert("levir-cc-concatenated", **roots)[0] == records
    assert path.read_bytes() == b"mine"


def test_a_pair_without_both_images_is_counted_and_a_broken_image_refused_by_name(roots):
    folder = roots["image_root"] / "images" / "train"
    (folder / "B" / "train_000002.png").unlink()
    assert convert("levir-cc-concatenated", **roots)[1].left_out["an image is not there"] == 1
    (folder / "A" / "train_000003.png").write_bytes(b"no image")
    roots["image_output"] = roots["image_output"] / "again"
    message = f"record 4: image {folder / 'A' / 'train_000003.png'} is no image that Pillow can read"
    with pytest.raises(ValueError, match=re.escape(message)):
        convert("levir-cc-concatenated", **roots)


@pytest.mark.parametrize(("flag", "other"), [("--image_root", "image_output"), ("--image_output", "image_root")])
def test_the_flag_that_a_joined_image_needs_is_named(tmp_path, flag, other):
    with pytest.raises(ValueError, match=flag):
        convert("levir-cc-concatenated", **{other: tmp_path})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"raw": " some houses', '"row": " some houses', "record 2: field 'sentences[1].raw' is missing"),
        ('"filename": "train_000001.png"', '"filename": 1', "record 1: field 'filename' must be a string"),
        ("villas", "<img_path>", "record 2: its text holds '<img_path>'"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(tmp_path, old, new, message):
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    text = (FIXTURE / FILE).read_text(encoding="utf-8")
    (tmp_path / FILE).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / FILE}, {message}")):
        convert("levir-cc", tmp_path)
