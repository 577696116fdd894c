"""Captions: cleaned to sentences, asked for in drawn words, each once; and malformed sources refused by place."""

import json
import re
import shutil
from pathlib import Path

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources import _captions, artemis, coco_captions, img2paragraph, remote_sensing, textcaps
from instruction_dataset.sources._captions import as_caption, as_paragraph

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCES = {
    name: source
    for module in (img2paragraph, coco_captions, textcaps, remote_sensing, artemis)
    for name, source in module.SOURCES.items()
}
BANKS = {"DETAILED": 16, "SHORT": 13, "WITH_TEXT": 10, "AERIAL": 12, "CHANGE": 15, "FEELING": 12}
COCO, PARAGRAPHS, TEXTCAPS = "annotations/captions_train2017.json", "paragraphs_v1.json", "TextCaps_0.1_train.json"


@pytest.fixture
def source(tmp_path):
    def copy(name):
        shutil.copytree(FIXTURES / name / "source", tmp_path / name)
        return tmp_path / name

    return copy


def edit(file, change):
    """Change a JSON file in place."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def convert(name, folder, split="train", **flags):
    job = Job(split=split, **flags)
    return list(SOURCES[name].convert(folder, job)), job


def refused(name, folder, message, **flags):
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(name, folder, **flags)


@pytest.mark.parametrize(("bank", "size"), BANKS.items())
def test_a_bank_holds_different_sentences_that_end(bank, size):
    prompts = getattr(_captions, bank)
    assert len(set(prompts)) == len(prompts) == size
    assert all(prompt[0].isupper() and prompt[-1] in ".?" for prompt in prompts)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" a dog  runs .", "A dog runs."),
        ("is it late ?!", "Is it late?!"),
        ("“hi” , she says", "“hi”, she says."),
        ("a cat ,", "A cat."),
        ("cats ,dogs, and : birds", "Cats ,dogs, and: birds."),
        ("火车站。", "火车站。"),
        ("...", ""),
        ("\t\n", ""),
    ],
)
def test_a_caption_becomes_one_sentence_on_one_line(text, caption):
    assert as_caption(text) == caption


def test_a_paragraph_has_a_capital_after_each_full_stop_but_not_within_numbers():
    assert as_paragraph("it is 3.5 m.  so what? élan! ok") == "It is 3.5 m. So what? Élan! Ok."


def test_a_caption_that_names_an_image_is_refused():
    with pytest.raises(ValueError, match="its text holds '<img_path>'"):
        as_caption("see <img_path>")


@pytest.mark.parametrize("name", SOURCES)
def test_the_seed_decides_the_prompts_and_nothing_else(source, name):
    folder, split = source(name), "test" if name == "ucm-captions" else "train"
    runs = [convert(name, folder, split, seed=seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len({tuple(record.input for record in run) for run in runs}) > 1
    bare = [[(split_images(record.input)[1], record.output) for record in run] for run in runs]
    assert all(run == bare[0] for run in bare)


def test_paragraphs_come_from_the_images_of_the_split(source):
    folder = source("img2paragraph")
    (record,), job = convert("img2paragraph", folder, "val")
    assert record.input.endswith(" <img_path>VG_100K/2317429.jpg<img_path>")
    assert record.output == "Not of this split."
    assert job.left_out == {"the image is not of split val": 4}


def test_a_split_that_is_missing_or_no_list_of_numbers_is_refused(source):
    folder = source("img2paragraph")
    refused("img2paragraph", folder, f"{folder / 'test_split.json'} does not exist", split="test")
    (folder / "val_split.json").write_text('[1, "2"]')
    message = f"{folder / 'val_split.json'}, record 2: an image id must be a whole number, not a string"
    refused("img2paragraph", folder, message, split="val")


def test_all_captions_of_a_coco_image_have_one_prompt(source):
    records, job = convert("coco-captions", source("coco-captions"))
    assert len({record.input for record in records}) == 2
    assert job.left_out == {"the answer is empty": 1}


def test_each_textcaps_caption_comes_once_where_it_came_five_times_in_2023(source):
    folder = source("textcaps")
    records, job = convert("textcaps", folder)
    assert job.left_out["the row repeats an image, whose captions all came with its first row"] == 3
    then, job = convert("textcaps", folder, as_2023=True)
    # three rows of an image with five captions, two rows of one with three, of which one is blank
    assert (len(records), len(then)) == (5 + 2, 3 * 5 + 2 * 2)
    assert job.left_out == {"the answer is empty": 2}


def test_a_caption_that_fills_up_the_five_of_an_aerial_image_is_counted_not_repeated(source):
    records, job = convert("rsicd", source("rsicd"))
    assert len({(record.input, record.output) for record in records}) == len(records) == 5
    assert job.left_out["the image has the same caption twice"] == 2


def test_the_three_aerial_datasets_are_merged_with_the_longest_caption_of_each_image(source):
    folder = source("ret-3")
    merged = {split_images(record.input)[1][0]: record.output for record in convert("ret-3", folder)[0]}
    assert merged["UCM/1.tif"] == "Here is farmland near a naïve canal."
    assert [path.partition("/")[0] for path in merged] == ["RSICD", "RSICD", "RSITMD", "RSITMD", "UCM"]
    file = folder / "dataset_rsicd.json"
    refused("ret-3", file, f"{file} is one file, but RET-3 is made of three; give their folder as --source")


def test_two_files_of_one_aerial_dataset_are_refused(source):
    folder = source("ret-3")
    (folder / "Sydney").mkdir()
    (folder / "Sydney" / "dataset.json").write_text("{}")
    message = (
        f"{folder} holds both {folder}/Sydney/dataset.json and {folder}/UCM_captions/dataset.json; keep the one of UCM"
    )
    refused("ret-3", folder, message)


def test_artemis_of_version_2_is_read_from_its_folder_of_tables(tmp_path):
    folder = tmp_path / "combined" / "train"
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / f"{name}.csv").write_text(f"painting,art_style,utterance,emotion\n{name},Rococo,so calm,awe\n")
    records, _ = convert("artemis", tmp_path)
    assert [split_images(record.input)[1] for record in records] == [["wikiart/Rococo/a.jpg"], ["wikiart/Rococo/b.jpg"]]
    assert {record.output for record in records} == {"A feeling of awe. So calm."}


def test_artemis_without_a_column_is_refused_with_its_place(source):
    folder = source("artemis")
    file = folder / "artemis_dataset_release_v0.csv"
    file.write_text("art_style,painting,utterance\nRococo,a,so calm\n")
    refused("artemis", folder, f"{file}, record 1: field 'emotion' is missing")


@pytest.mark.parametrize(
    ("name", "file", "key", "change", "message"),
    [
        ("img2paragraph", PARAGRAPHS, None, {"url": None}, "field 'url' must be a string, not null"),
        ("img2paragraph", PARAGRAPHS, None, {"paragraph": 3}, "field 'paragraph' must be a string, not a number"),
        ("img2paragraph", PARAGRAPHS, None, {"image_id": "x"}, "field 'image_id' must be a whole number, not 'x'"),
        (
            "coco-captions",
            COCO,
            "annotations",
            {"image_id": []},
            "field 'image_id' must be a whole number, not an array",
        ),
        ("coco-captions", COCO, "annotations", {"caption": "a <img_path>"}, "its text holds '<img_path>'"),
        ("textcaps", TEXTCAPS, "data", {"reference_strs": ["a", 1]}, "field 'reference_strs[1]' must be a string"),
        ("textcaps", TEXTCAPS, "data", {"image_path": ""}, "an image path is empty"),
        ("rsicd", "dataset_rsicd.json", "images", {"split": 1}, "field 'split' must be a string, not a number"),
        (
            "rsicd",
            "dataset_rsicd.json",
            "images",
            {"sentences": {}},
            "field 'sentences' must be an array, not an object",
        ),
        ("rsitmd", "dataset_RSITMD.json", "images", {"sentences": [{}]}, "field 'sentences[0].raw' is missing"),
        ("ret-3", "RSITMD/dataset_RSITMD.json", "images", {"filename": 1}, "field 'filename' must be a string"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place_or_skipped(source, name, file, key, change, message):
    folder = source(name)
    edit(folder / file, lambda value: (value[key] if key else value)[0].update(change))
    refused(name, folder, f"{folder / file}, record 1: {message}")
    records, job = convert(name, folder, skip_bad=True)
    assert len(job.bad) == 1
    assert records


def test_a_file_of_another_shape_is_refused_by_name(source):
    folder = source("coco-captions")
    (folder / COCO).write_text('{"images": []}')
    refused("coco-captions", folder, f"{folder / COCO} has no array 'annotations' with anything in it")
