"""MIMIC-IT: instructions with some of their images, under the names that the exported files have."""

import json
import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources.mimic_it import PARTS, SOURCES, stored_name

INSTRUCTION = {"instruction": "What?", "answer": "That.", "image_ids": ["LA_IMG_1"], "rel_ins_ids": []}


def convert(folder, name, *rows, **flags):
    part = PARTS[name]
    file = folder / part.folder / part.file
    file.parent.mkdir(exist_ok=True)
    data = {f"INS_{i}": {**INSTRUCTION, **row} for i, row in enumerate(rows)}
    file.write_text(json.dumps({"meta": {"version": "0.0.1"}, "data": data}))
    job = Job(**flags)
    return list(SOURCES[name].convert(folder, job)), job


@pytest.mark.parametrize("name", [name for name in PARTS if name != "mimic-it-vst"])
def test_so_many_images_are_drawn_and_keep_their_order(tmp_path, name):
    most = PARTS[name].most_images
    names = [f"IMG_{i:02d}" for i in range(most + 3)]
    drawn = set()
    for seed in range(5):
        (few, many), _ = convert(tmp_path, name, {"image_ids": names[:most]}, {"image_ids": names}, seed=seed)
        assert split_images(few.input)[1] == [f"{name}.png" for name in names[:most]]
        paths = split_images(many.input)[1]
        assert len(paths) == most
        assert paths == sorted(set(paths))
        drawn.add(tuple(paths))
    assert len(drawn) > 1


def test_an_answer_that_speaks_of_annotations_is_left_out_where_2023_looked_at_the_question(tmp_path):
    rows = [{"answer": "As the annotations say."}, {"instruction": "Which annotations are there?"}, {}]
    records, job = convert(tmp_path, "mimic-it-ladd", *rows)
    assert [split_images(record.input)[0][0] for record in records] == ["Which annotations are there?", "What?"]
    assert job.left_out == {"it speaks of annotations": 1}
    then, _ = convert(tmp_path, "mimic-it-ladd", *rows, as_2023=True)
    assert [record.output for record in then] == ["As the annotations say.", "That."]


def test_an_answer_with_people_whose_names_were_taken_out_is_left_out(tmp_path):
    records, job = convert(tmp_path, "mimic-it-tvc", {"answer": "[male] left."}, {"answer": "A [female]?"}, {})
    assert (len(records), job.left_out) == (1, {"it speaks of [male] or [female]": 2})


@pytest.mark.parametrize("scene", ["scene0370_02", "scene0002_00"])
def test_images_of_sn_are_named_as_they_are_stored(scene):
    stored = f"SN_00_IMG_{scene}_00_color_1300"
    assert stored_name(f"SN_IMG_{scene}_color_1300") == stored_name(stored) == stored


def test_vst_keeps_what_has_all_its_images(tmp_path):
    (tmp_path / "a.png").touch()
    records, job = convert(
        tmp_path, "mimic-it-vst", {"image_ids": ["a"]}, {"image_ids": ["a", "b"]}, image_root=tmp_path
    )
    assert (len(records), job.left_out) == (1, {"an image is not there": 1})
    with pytest.raises(ValueError, match="--image_root"):
        convert(tmp_path, "mimic-it-vst", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": None}, "field 'instruction' must be a string, not null"),
        ({"answer": ["a"]}, "field 'answer' must be a string, not an array"),
        ({"image_ids": "LA_IMG_1"}, "field 'image_ids' must be an array, not a string"),
        ({"image_ids": ["a", 1]}, "field 'image_ids[1]' must be a string, not a number"),
        ({"instruction": "<img_path>"}, "its text holds '<img_path>'"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place_or_skipped(tmp_path, change, message):
    file = tmp_path / "LA" / "LACONV_instructions.json"
    with pytest.raises(ValueError, match=re.escape(f"{file}, record 2: {message}")):
        convert(tmp_path, "mimic-it-laconv", {}, change)
    records, job = convert(tmp_path, "mimic-it-laconv", {}, change, {}, skip_bad=True)
    assert (len(records), len(job.bad)) == (2, 1)


def test_a_file_without_instructions_is_refused(tmp_path):
    file = tmp_path / "LADD_instructions.json"
    file.write_text('{"LADD_INS_1": {}}')
    with pytest.raises(ValueError, match=re.escape(f"{file} has no object 'data' with anything in it")):
        list(SOURCES["mimic-it-ladd"].convert(tmp_path, Job()))
