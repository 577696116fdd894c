"""LRV: both shapes of its files, its two parts, and the join with Visual Genome."""

import json
import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources.lrv import SOURCES

SOURCE = SOURCES["lrv"]
QUESTION = {"image_id": "7", "question": "What is there?", "answer": "There is a red tram.", "task": "vqa"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 7, "url": "https://x.org/VG_100K_2/7.jpg"}]))
    return tmp_path


def converted(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return [(record.input, record.output) for record in SOURCE.convert(folder, Job())]


@pytest.mark.parametrize("value", [[QUESTION], {"annotations": [QUESTION]}])
def test_an_array_and_an_object_that_holds_one_are_the_same(folder, value):
    tag = "<img_path>VG_100K_2/7.jpg<img_path>"
    assert converted(folder, filter_cap=value) == [(f"{tag}What is there?", "There is a red tram.")]


def test_both_parts_are_read_and_those_without_coordinates_are_preferred(folder):
    parts = {
        name: [{**QUESTION, "answer": f"This is the file {name}."}]
        for name in ("filter_cap", "filter_cap1", "filter_cap_more", "filter_cap_more1")
    }
    answers = [answer for _, answer in converted(folder, **parts)]
    assert answers == ["This is the file filter_cap1.", "This is the file filter_cap_more1."]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"answer": "Fifteen chars.."}, False),
        ({"answer": "Sixteen chars..."}, True),
        ({"answer": "There is a red tram"}, False),
        ({"answer": "There is a tram: red."}, False),
        ({"question": "Name: what?"}, False),
    ],
)
def test_answers_that_are_no_sentences_are_left_out(folder, change, kept):
    assert bool(converted(folder, filter_cap=[{**QUESTION, **change}])) is kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "8"}, "field 'image_id' names image 8, which image_data.json does not list"),
        ({"image_id": None}, "field 'image_id' must be a whole number, not null"),
        ({"answer": 4}, "field 'answer' must be a string, not a number"),
        ({"question": "What is <img_path> there?"}, "its text holds '<img_path>'"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(folder, change, message):
    place = f"{folder / 'filter_cap.json'}, record 2: "
    with pytest.raises(ValueError, match=re.escape(place + message)):
        converted(folder, filter_cap={"annotations": [QUESTION, {**QUESTION, **change}]})


def test_a_folder_without_image_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'image_data.json'} does not exist")):
        converted(tmp_path, filter_cap=[QUESTION])
