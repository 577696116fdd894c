"""FunQA: the frames of a video at their times, made once, and broken videos refused by name."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources._frames import extract
from instruction_dataset.sources.funqa import SOURCES, how_many

pytest.importorskip("av")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "funqa" / "source"
HUMOR = "H_A_101_1433_1620.mp4"
QUESTIONS = "annotation_with_ID/funqa_train.json"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "funqa")


def convert(folder, **flags):
    job = Job(**{"split": "train", "image_output": folder.parent / "made", **flags})
    return list(SOURCES["funqa"].convert(folder, job)), job


def ask(folder, **change):
    row = {"instruction": "Why?", "visual_input": HUMOR, "output": "So.", "task": "H3", "ID": "1"}
    (folder / QUESTIONS).write_text(json.dumps([{**row, **change}]))


def test_the_frames_show_the_video_at_their_times(folder):
    frames = extract(folder / "train" / "train_humor" / HUMOR, folder.parent, "x", how_many, 16)
    assert [frame.seconds for frame in frames] == [0.25 + 0.5 * i for i in range(8)]
    grey = []
    for frame in frames:
        with Image.open(folder.parent / frame.path) as image:
            assert (image.size, image.format) == ((16, 16), "JPEG")
            grey.append(image.getpixel((8, 8))[0])
    # the video goes from black to white in 16 frames, of which each of the times falls on an odd one
    assert all(abs(shown - 250 * (2 * i + 1) / 15) < 12 for i, shown in enumerate(grey))


@pytest.mark.parametrize(("seconds", "frames"), [(1, 8), (15.9, 8), (16, 16), (60, 16)])
def test_a_long_video_has_twice_as_many_frames(seconds, frames):
    assert how_many(seconds) == frames


def test_the_question_stands_before_the_frames_or_after_them(folder):
    ask(folder)
    starts = {convert(folder, seed=seed)[0][0].input.startswith("Why?\n0.2s: <img_path>") for seed in range(8)}
    ends = {convert(folder, seed=seed)[0][0].input.endswith("<img_path>\nWhy?") for seed in range(8)}
    assert starts == ends == {True, False}


def test_what_asks_for_a_span_of_time_and_missing_videos_are_counted(folder):
    records, job = convert(folder)
    counts = {"it asks for a span of time": 1, "the video is not there": 1, "the answer is empty": 1}
    assert (len(records), job.left_out) == (4, counts)


def test_frames_of_an_earlier_run_are_kept_and_missing_ones_made(folder):
    records, _ = convert(folder)
    first, second = (folder.parent / "made" / path for path in split_images(records[0].input)[1][:2])
    first.write_bytes(b"mine")
    assert convert(folder)[0] == records
    assert first.read_bytes() == b"mine"
    second.unlink()
    convert(folder)
    assert second.exists()


def test_videos_may_lie_in_another_folder_than_the_questions(folder):
    elsewhere = folder.parent / "videos"
    elsewhere.mkdir()
    (folder / "train").rename(elsewhere / "train")
    assert len(convert(folder, image_root=elsewhere)[0]) == 4


def test_a_broken_video_is_refused_by_name(folder):
    video = folder / "train" / "train_humor" / HUMOR
    video.write_bytes(b"no video")
    place = re.escape(f"{folder / QUESTIONS}, record 2: video {video} cannot be decoded (")
    with pytest.raises(ValueError, match=place):
        convert(folder)
    assert convert(folder, skip_bad=True)[1].bad[0].startswith(f"{folder / QUESTIONS}, record 2: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"visual_input": "X_1.mp4"},
            "field 'visual_input' must be a file name that begins with H, C, M, not 'X_1.mp4'",
        ),
        ({"visual_input": "H/../../a.mp4"}, "field 'visual_input' must be a file name"),
        ({"task": 3}, "field 'task' must be a string, not a number"),
        ({"output": ["a"]}, "field 'output' must be a string, not an array"),
        ({"instruction": "<img_path>"}, "its text holds '<img_path>'"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(folder, change, message):
    ask(folder, **change)
    with pytest.raises(ValueError, match=re.escape(f"{folder / QUESTIONS}, record 1: {message}")):
        convert(folder)


def test_without_a_folder_for_frames_or_without_pyav_it_says_what_is_needed(folder, monkeypatch):
    with pytest.raises(ValueError, match="--image_output"):
        convert(folder, image_output=None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="run `pip install av`"):
        convert(folder, skip_bad=True)
