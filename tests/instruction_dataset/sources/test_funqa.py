"""FunQA: the frames of a video at their times and the right way up, made once, and broken videos refused by name."""

import json
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.records import split_images
from instruction_dataset.sources._frames import extract
from instruction_dataset.sources.funqa import SOURCES, how_many

av = pytest.importorskip("av")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "funqa" / "source"
HUMOR = "H_A_101_1433_1620.mp4"
QUESTIONS = "annotation_with_ID/funqa_train.json"
UPRIGHT = b"\0\1\0\0" + 12 * b"\0" + b"\0\1\0\0" + 12 * b"\0" + b"\x40\0\0\0"
TURNED = 4 * b"\0" + b"\0\1\0\0" + 4 * b"\0" + b"\xff\xff\0\0" + 16 * b"\0" + b"\x40\0\0\0"
"""How mp4 says that a picture is shown as it is, and that it is turned clockwise by a right angle."""


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "funqa")


def film(path, pictures, first=0, last=1, sound=0, **options):
    """A video of pictures, each a quarter second long and the last one `last` of these, with seconds of sound."""
    with av.open(path, "w", options=options) as container:
        container.metadata["title"] = "cafX"
        stream = container.add_stream("mpeg4", rate=4, width=64, height=32, pix_fmt="yuv420p")
        listened = container.add_stream("aac", rate=8000) if sound else None
        for number, picture in enumerate(pictures, start=1):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = first + number - 1, Fraction(1, 4)
            for packet in stream.encode(frame):
                packet.duration = last if number == len(pictures) else 1
                container.mux(packet)
        container.mux(stream.encode())
        if listened is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * sound), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(listened.encode(silence))
            container.mux(listened.encode())
    return path


def greys(count):
    """Pictures from black to white."""
    return [Image.new("RGB", (64, 32), 3 * (250 * i // (count - 1),)) for i in range(count)]


def shades(folder, frames):
    return [Image.open(folder / frame.path).convert("L").getpixel((8, 8)) for frame in frames]


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


@pytest.mark.parametrize(("first", "sound"), [(0, 0), (20, 0), (0, 8), (20, 8)])
def test_times_are_those_of_the_pictures_whatever_is_before_them_or_heard_after(tmp_path, first, sound):
    video = film(tmp_path / "v.mp4", greys(16), first=first, sound=sound)
    frames = extract(video, tmp_path, "x", how_many, 16)
    assert [frame.seconds for frame in frames] == [0.25 + 0.5 * i for i in range(8)]
    assert all(abs(shade - 250 * (2 * i + 1) / 15) < 12 for i, shade in enumerate(shades(tmp_path, frames)))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize(("pictures", "last"), [(2, 14), (3, 4)])
def test_the_last_picture_is_seen_as_long_as_it_lasts(tmp_path, name, pictures, last):
    video = film(tmp_path / name, greys(pictures), last=last)
    frames = extract(video, tmp_path, "x", lambda _: 4, 16)
    assert shades(tmp_path, frames)[-2:] == pytest.approx([250, 250], abs=12)


def test_a_single_picture_is_a_video(tmp_path):
    frames = extract(film(tmp_path / "v.mp4", greys(2)[:1]), tmp_path, "x", how_many, 16)
    assert shades(tmp_path, frames) == [0] * 8


def test_where_pictures_have_no_length_of_their_own_the_last_stays_as_long_as_the_sound(tmp_path):
    video = film(tmp_path / "v.mkv", greys(4), sound=4)
    frames = extract(video, tmp_path, "x", lambda _: 4, 16)
    assert shades(tmp_path, frames) == pytest.approx([166, 250, 250, 250], abs=12)


def test_a_video_that_is_cut_short_is_refused(tmp_path):
    video = film(tmp_path / "v.mp4", greys(40), movflags="faststart")
    content = video.read_bytes()
    start = content.index(b"mdat")
    video.write_bytes(content[: start + (len(content) - start) // 3])
    with pytest.raises(
        ValueError, match=rf"^video {video} ends after \d\.\d seconds, before its time; fetch it again$"
    ):
        extract(video, tmp_path, "x", how_many, 16)


def test_a_picture_that_lies_on_its_side_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (64, 32))
    picture.paste("white", (0, 0, 32, 16))
    video = film(tmp_path / "v.mp4", [picture])
    content = video.read_bytes()
    start = content.index(b"tkhd")
    assert UPRIGHT in content[start : start + 96]
    video.write_bytes(content[:start] + content[start:].replace(UPRIGHT, TURNED, 1))
    (frame,) = extract(video, tmp_path, "x", lambda _: 1, 32)
    image = Image.open(tmp_path / frame.path).convert("L")
    corners = [image.getpixel(place) for place in ((4, 4), (28, 4), (4, 28), (28, 28))]
    assert corners == pytest.approx([0, 255, 0, 0], abs=12)


def test_a_title_in_another_encoding_is_no_fault(tmp_path):
    video = film(tmp_path / "v.mp4", greys(4))
    video.write_bytes(video.read_bytes().replace(b"cafX", b"caf\xe9"))
    assert len(extract(video, tmp_path, "x", how_many, 16)) == 8


@pytest.mark.parametrize("name", ["../x", "{tmp_path}/x", "a/../../x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    video = film(tmp_path / "v.mp4", greys(4))
    with pytest.raises(ValueError, match="leads out of its folder; correct it in the source"):
        extract(video, tmp_path / "made", name.format(tmp_path=tmp_path), how_many, 16)
    assert list(tmp_path.iterdir()) == [video]


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
