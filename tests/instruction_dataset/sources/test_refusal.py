"""Refusals: every image of the folder, other images' prompts or noise, one answer."""

import json
import re
import shutil
from pathlib import Path
from random import Random

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources import refusal
from instruction_dataset.sources.refusal import REFUSAL, SOURCES

FIXTURE = Path(__file__).parents[1] / "fixtures" / "refusal" / "source"
PROMPT = {"input": "<img_path>old.jpg<img_path>What is it?", "output": "A cat."}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "mine")


def convert(folder, seed=0):
    job = Job(seed=seed)
    return list(SOURCES["refusal"].convert(folder, job)), job


def test_every_image_of_the_folder_and_no_other_file_is_refused_once(folder):
    (folder / "images" / "folder.png").mkdir()
    (folder / "images" / ".thumbnails").mkdir()
    for hidden in ("._a.png", ".thumbnails/a.png"):
        (folder / "images" / hidden).touch()
    records, job = convert(folder)
    paths = [split_images(record.input)[1] for record in records]
    assert paths == [
        [path] for path in ("a.png", "more/b c.jpg", "more/été.JPEG", "nested/d.gif", "nested/e.bmp", "z.png")
    ]
    assert {record.output for record in records} == {REFUSAL}
    assert (job.read, len(records), job.left_out) == (6, 6, {})


def test_a_fifth_of_the_prompts_is_noise(folder):
    for number in range(500):
        (folder / "images" / f"more{number}.png").touch()
    texts = ["".join(split_images(record.input)[0]) for record in convert(folder)[0]]
    known = {"What is the man holding?", "Décris cette image : , s'il te plaît. 🙂"}
    noise = [text for text in texts if text not in known]
    assert 0.15 < len(noise) / len(texts) < 0.25
    assert len(set(noise)) == len(noise)
    assert all(4 <= len(text) <= 64 for text in noise)


def test_the_seed_decides_which_prompt_an_image_gets(folder):
    assert convert(folder, seed=5)[0] == convert(folder, seed=5)[0] != convert(folder, seed=6)[0]


def test_of_many_prompts_a_sample_is_held_to_which_late_ones_belong(folder, monkeypatch):
    monkeypatch.setattr(refusal, "PROMPTS_HELD", 20)
    rows = [{**PROMPT, "input": f"<img_path>a<img_path>{i}"} for i in range(400)]
    (folder / "prompts.json").write_text(json.dumps(rows))
    held = [int(after) for _, after in refusal._prompts(folder, Random(0))]
    assert len(set(held)) == 20
    assert min(held) < 100
    assert max(held) > 300


def test_the_words_of_the_user_are_the_answer(folder):
    (folder / "answer.txt").write_text("  Non, désolé 🙏.\n", encoding="utf-8")
    assert {record.output for record in convert(folder)[0]} == {"Non, désolé 🙏."}


def test_prompts_may_be_json_lines(folder):
    (folder / "prompts.json").unlink()
    (folder / "prompts.jsonl").write_text(json.dumps(PROMPT) + "\n")
    assert len(convert(folder)[0]) == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prompts.json", "[]", "prompts.json holds no prompt with one image; make it of records about images"),
        ("prompts.json", '[{"input": "a"}]', "prompts.json, record 1: field 'output' is missing"),
        ("answer.txt", " \n", "answer.txt is empty; write the refusal into it, or take it away"),
        ("answer.txt", "No <img_path>.", "its text holds '<img_path>'"),
    ],
)
def test_a_file_that_is_no_use_is_refused(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(folder)


def test_a_folder_without_images_or_prompts_is_refused(folder):
    shutil.rmtree(folder / "images")
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / 'images'))} holds no image"):
        convert(folder)
    (folder / "prompts.json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder} holds no prompts.json and no prompts.jsonl")):
        convert(folder)
