"""Pieces of images: cut at the right place, beside whole ones in one folder, and named in what is said of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources import refcocog, vcr
from instruction_dataset.sources._crops import Crops

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCES = {**refcocog.SOURCES, **vcr.SOURCES}
REFEXP, INSTANCES = "google_refexp_train_201511.json", "instances_train2014.json"
METADATA = "vcr1images/m1/scene@0.json"


def ramp(width, height):
    """An image whose pixel at (x, y) is (4x, 4y, 0)."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * x, 4 * y, 0 * x], axis=-1).astype(np.uint8))


@pytest.fixture
def folders(tmp_path):
    """A copy of a fixture, its images, and a folder for what is made."""

    def make(name):
        shutil.copytree(FIXTURES / name / "source", tmp_path / "source")
        sizes = json.loads((FIXTURES / name / "images.json").read_text())
        for path in sizes:
            (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            ramp(64, 48).save(tmp_path / "images" / path)
        return tmp_path / "source", tmp_path / "images", tmp_path / "made"

    return make


def convert(name, source, images=None, made=None, **flags):
    job = Job(split="train", image_root=images, image_output=made, **flags)
    return list(SOURCES[name].convert(source, job)), job


def refused(name, folders, *words, **flags):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        convert(name, *folders, **flags)
    for word in words:
        assert word in str(caught.value)


def edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_lines(file, number, **fields):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[number].update(fields)
    file.write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("name", ["vcr", "refcocog-cropped"])
def test_one_folder_holds_every_image_that_records_name(folders, name):
    source, images, made = folders(name)
    for record in convert(name, source, images, made)[0]:
        for path in split_images(record.input)[1]:
            assert Image.open(made / path).size


@pytest.mark.parametrize("name", ["vcr", "refcocog-cropped"])
def test_pieces_may_go_where_the_images_are(folders, name):
    source, images, made = folders(name)
    apart = convert(name, source, images, made)[0]
    assert convert(name, source, images, images)[0] == apart


def test_a_piece_holds_the_pixels_of_its_box(folders):
    source, images, made = folders("refcocog-cropped")
    convert("refcocog-cropped", source, images, made)
    piece = np.asarray(Image.open(made / "refcocog_cropped/1002.jpg")).astype(int)
    whole = np.asarray(Image.open(made / "train2014/COCO_train2014_000000000007.jpg").convert("RGB"))
    assert np.abs(piece - whole[0:48, 32:64]).max() < 12


def test_a_second_run_leaves_pieces_as_they_are(folders):
    source, images, made = folders("vcr")
    first = convert("vcr", source, images, made)[0]
    times = {path: path.stat().st_mtime_ns for path in made.rglob("*.jpg")}
    assert convert("vcr", source, images, made)[0] == first
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == times


@pytest.mark.parametrize(("keep", "flag"), [((1, 0), "--image_output"), ((0, 1), "--image_root")])
@pytest.mark.parametrize("name", ["vcr", "refcocog-cropped"])
def test_a_folder_that_is_not_named_is_asked_for(folders, name, keep, flag):
    source, *others = folders(name)
    given = [folder if wanted else None for folder, wanted in zip(others, keep, strict=True)]
    refused(name, (source, *given), flag, skip_bad=True)


def test_a_damaged_image_is_refused_by_name(folders):
    source, images, made = folders("refcocog-cropped")
    (images / "train2014/COCO_train2014_000000000007.jpg").write_bytes(b"no picture")
    refused("refcocog-cropped", (source, images, made), "000000000007.jpg is no image that Pillow can read", "record 1")
    assert not list(made.rglob("*.*"))


@pytest.mark.parametrize("name", ["refcocog", "refcocog-cropped"])
@pytest.mark.parametrize("box", [[64, 2, 5, 5], [1.5, 2, 0, 5], [-5, 2, 5, 5], [1, 48.5, 5, 5]])
def test_a_box_without_a_part_of_its_image_is_refused(folders, name, box):
    source, images, made = folders(name)
    edit(source / INSTANCES, lambda value: value["annotations"][1].update(bbox=box))
    refused(name, (source, images, made), REFEXP, "record 1", "64 x 48")


def test_a_box_that_reaches_outside_is_given_as_far_as_the_image_goes(folders):
    source, *_ = folders("refcocog")
    edit(source / INSTANCES, lambda value: value["annotations"][3].update(bbox=[48, -12, 99, 36]))
    fractions = '{"left": 0.75, "top": 0.0, "width": 0.25, "height": 0.5}'
    assert fractions in convert("refcocog", source)[0][1].input


@pytest.mark.parametrize("path", ["../out.jpg", "/out.jpg"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="leads out of its folder"):
        Crops(tmp_path, tmp_path / "made").whole(path)


def test_equal_boxes_are_one_region_with_the_longest_expression(folders):
    source, *_ = folders("refcocog")
    records, job = convert("refcocog", source)
    assert records[0].output == "The black cat on the left, beside the sofa."
    assert job.left_out["another annotation has the same box"] == 1


def test_a_piece_is_asked_about_in_the_words_of_its_box(folders):
    source, images, made = folders("refcocog-cropped")
    boxes, pieces = convert("refcocog", source)[0], convert("refcocog-cropped", source, images, made)[0]
    for box, piece in zip(boxes[:3], pieces, strict=True):
        assert box.input.partition("{")[0] == piece.input.rpartition("<img_path>refcocog")[0]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (REFEXP, lambda v: v["annotations"][2].update(refexp_ids=[77]), ("record 3", "'refexp_ids' names 77")),
        (REFEXP, lambda v: v["annotations"][2].update(annotation_id=77), ("record 3", "'annotation_id' is 77")),
        (REFEXP, lambda v: v["annotations"][2].update(image_id=77), ("record 3", "'image_id' is 77")),
        (REFEXP, lambda v: v["refexps"][1].pop("raw"), ("record 2", "'raw' is missing")),
        (REFEXP, lambda v: v["refexps"].append(v["refexps"][0]), ("record 7", "1 was there before")),
        (INSTANCES, lambda v: v["annotations"][0].update(bbox=[1, 2]), ("record 1", "'bbox' must be four numbers")),
        (INSTANCES, lambda v: v["annotations"][0].pop("id"), ("record 1", "'id' is missing")),
        (INSTANCES, lambda v: v["images"][1].update(width=0), ("record 2", "above 0")),
    ],
)
def test_a_broken_join_of_regions_is_refused_by_record(folders, file, change, words):
    source, *_ = folders("refcocog")
    edit(source / file, change)
    refused("refcocog", (source,), file, *words)


@pytest.mark.parametrize(
    ("file", "change", "faults"),
    [
        (REFEXP, lambda v: v["annotations"][0].update(refexp_ids=[77]), ["record 1: field 'refexp_ids' names 77"]),
        (REFEXP, lambda v: v["annotations"][0].update(annotation_id="x"), ["record 1: field 'annotation_id' must be"]),
        (REFEXP, lambda v: v["refexps"][0].pop("raw"), ["field 'raw' is missing", "of which 'refexps' has no text"]),
        (
            INSTANCES,
            lambda v: v["annotations"][1].update(bbox=[1]),
            ["record 2: field 'bbox' must be four numbers", "of which COCO's train annotations have no box"],
        ),
        (
            INSTANCES,
            lambda v: v["images"][2].update(width=0),
            ["record 3: fields 'width' and 'height' must be above 0", "of which COCO's train images have no size"],
        ),
    ],
)
def test_a_malformed_row_is_counted_once_and_so_is_the_one_that_needs_it(folders, file, change, faults):
    source, *_ = folders("refcocog")
    edit(source / file, change)
    records, job = convert("refcocog", source, skip_bad=True)
    assert all(fault in bad for fault, bad in zip(faults, job.bad, strict=True))
    assert job.malformed == len(faults)
    assert job.read == len(records) + job.left_out.total() + 1


def test_objects_are_named_as_they_come_up():
    objects = ["person", "dog", *["person"] * 30]
    names = vcr.named(objects, ["Is", [3], "or", [0, 1], *[[number] for number in range(2, 32)]])
    assert [names[3], names[0], names[1], names[2], names[31]] == [
        "person-a",
        "person-b",
        "dog-a",
        "person-c",
        "person-ae",
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("He is n't here , is he ?", "He isn't here, is he?"),
        ("They ' re at the boys ' school .", "They're at the boys' school."),
        ("It ( the red one ) costs $ 5 .", "It (the red one) costs $5."),
        ('" Stop " , says the " t - shirt " .', '"Stop", says the "t-shirt".'),
        ("", ""),
    ],
)
def test_tokens_are_joined_as_text_is_written(words, text):
    assert vcr.joined(words.split(), str) == text


def test_only_the_first_mention_shows_an_object(folders):
    source, images, made = folders("vcr")
    edit_lines(source / "train.jsonl", 0, question=["Is", [0], "with", [0], "?"])
    record = convert("vcr", source, images, made)[0][0]
    assert record.input.count("vcr_crops/vcr1images/m1/scene@0/0.jpg") == 1
    assert "<img_path> with person-a?" in record.input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ["Who", [4], "?"]}, "'question' must hold words and numbers of its 4 objects, not [4]"),
        ({"question": ["Who", []]}, "not []"),
        ({"question": ["<img_path>"]}, "<img_path>"),
        ({"answer_label": 2}, "'answer_label' is 2, at which 'answer_choices' holds no array"),
        ({"rationale_label": None}, "'rationale_label' must be a whole number, not null"),
        ({"metadata_fn": "m1/none.json"}, "none.json does not exist"),
    ],
)
def test_a_malformed_scene_is_refused_by_field(folders, fields, message):
    source, images, made = folders("vcr")
    edit_lines(source / "train.jsonl", 0, **fields)
    refused("vcr", (source, images, made), "train.jsonl, record 1", message)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([[0, 0, 9, 9]], "1 boxes for 4 objects"), ([[0, 0], [1, 1]], "a box must be an array of at least four numbers")],
)
def test_metadata_that_lacks_boxes_is_refused(folders, boxes, message):
    source, images, made = folders("vcr")
    edit(source / METADATA, lambda value: value.update(boxes=boxes))
    refused("vcr", (source, images, made), "train.jsonl, record 1", METADATA, message)


def test_a_scene_whose_image_is_not_there_is_counted(folders):
    source, images, made = folders("vcr")
    assert convert("vcr", source, images, made)[1].left_out["the image is not there"] == 1
