"""VideoChat: frames named in the text lose their numbers, and frames in a folder are found in order and thinned."""

import json
import re
from itertools import pairwise

import av
import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.records import image_tag
from instruction_dataset.sources.videochat import SOURCES, frames

SOURCE = SOURCES["videochat"]


def converted(tmp_path, rows, name="videochat_instruct_11k.json", **job):
    (tmp_path / name).write_text(json.dumps(rows))
    return [(record.input, record.output) for record in SOURCE.convert(tmp_path, Job(**job))]


def make_frames(tmp_path, video, *names):
    for name in names:
        file = tmp_path / video / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_named_frames_keep_their_places_and_lose_their_numbers(tmp_path):
    row = {
        "input": "f0 <img_path>v/a 1.jpg<img_path>f1 <img_path>v/f2.jpg<img_path> f99 <img_path>c.jpg<img_path>\n"
        "In f3 what?\n\n### Assistant:A cat é.\n\n### Human: And half0 of it?\n### Assistant: No.\n\n### Human:Why?",
        "output": "Thirst.",
    }
    name = "videochat_instruct_11k_frames.train.multi_round.json"
    assert converted(tmp_path, [row], name) == [
        (
            "<img_path>v/a 1.jpg<img_path><img_path>v/f2.jpg<img_path> <img_path>c.jpg<img_path>\n"
            "In f3 what?\n### Assistant: A cat é.\n### Human: And half0 of it?\n### Assistant: No.\n### Human: Why?",
            "Thirst.",
        )
    ]


def test_frames_are_in_the_order_of_their_numbers_and_other_files_are_not_frames(tmp_path):
    make_frames(tmp_path, "a/1", "f10.jpg", "f2.JPG", "f1.png", "times.txt")
    assert frames(tmp_path, "a/1.mp4") == ["a/1/f1.png", "a/1/f2.JPG", "a/1/f10.jpg"]


@pytest.mark.parametrize("count", [8, 9, 30, 100])
def test_of_many_frames_eight_are_taken_from_the_first_to_the_last(tmp_path, count):
    make_frames(tmp_path, "v", *(f"{i}.jpg" for i in range(count)))
    taken = [int(path.removeprefix("v/").removesuffix(".jpg")) for path in frames(tmp_path, "v.mp4")]
    assert len(taken) == 8
    assert (taken[0], taken[-1]) == (0, count - 1)
    gaps = [after - before for before, after in pairwise(taken)]
    assert max(gaps) - min(gaps) <= 1


def test_frames_are_made_of_the_videos_where_a_folder_for_them_is_named(tmp_path):
    (tmp_path / "videos/a").mkdir(parents=True)
    with av.open(tmp_path / "videos/a/1.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=4, width=32, height=32, pix_fmt="yuv420p")
        for brightness in range(0, 256, 16):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (brightness,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    rows = [{"video": f"a/{i}.mp4", "QA": [{"q": "What changes?", "a": "The light."}]} for i in (1, 2)]
    records = converted(tmp_path, rows, image_root=tmp_path / "videos", image_output=tmp_path / "frames")
    paths = [f"a/1/{i}.jpg" for i in range(8)]
    assert records == [("".join(map(image_tag, paths)) + "What changes?", "The light.")]
    shades = [Image.open(tmp_path / "frames" / path).convert("L").getpixel((168, 168)) for path in paths]
    assert shades == sorted(set(shades))


@pytest.mark.parametrize("video", ["../outside.mp4", "/outside.mp4", "a/../../outside.mp4"])
@pytest.mark.parametrize("made", [{}, {"image_output": "made"}])
def test_a_video_out_of_the_folder_is_neither_read_nor_are_its_frames_written(tmp_path, video, made):
    (tmp_path / "videos").mkdir()
    (tmp_path / "outside.mp4").touch()
    make_frames(tmp_path, "outside", "0.jpg")
    folders = {"image_root": tmp_path / "videos", **{name: tmp_path / path for name, path in made.items()}}
    with pytest.raises(ValueError, match=f"record 1: path '{video.removesuffix('.mp4')}.*' leads out of its folder"):
        converted(tmp_path, [{"video": video, "QA": []}], **folders)
    assert not (tmp_path / "made").exists()


def test_each_row_has_a_form_of_its_own(tmp_path):
    make_frames(tmp_path, "v", "0.jpg")
    rows = [{"answer": 3}, {"video": "v.mp4", "QA": [{"q": "Who?", "a": "Ann."}]}, {"input": "Why?", "output": "So."}]
    assert converted(tmp_path, rows, image_root=tmp_path, skip_bad=True) == [
        ("<img_path>v/0.jpg<img_path>Who?", "Ann."),
        ("Why?", "So."),
    ]


@pytest.mark.parametrize("before", [[], [{"input": "Why?", "output": "So."}], [{"answer": 3}]])
def test_videos_need_the_folder_of_their_frames(tmp_path, before):
    with pytest.raises(ValueError, match="name their folder with --image_root"):
        converted(tmp_path, [*before, {"video": "v.mp4", "QA": []}], skip_bad=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "v.mp4", "QA": [{"q": "Who?"}]}, "field 'QA[0].a' is missing"),
        ({"video": "v.mp4", "QA": [{"q": 3, "a": "x"}]}, "field 'QA[0].q' must be a string, not a number"),
        ({"video": "v.mp4", "QA": [{"q": "<img_path>", "a": "x"}]}, "its text holds '<img_path>'"),
        ({"video": "v.mp4"}, "field 'QA' is missing"),
        ({"QA": []}, "field 'video' is missing"),
        ({"video": "", "QA": []}, "field 'video' must be the path of a video, not ''"),
        ({"output": "x"}, "field 'input' is missing"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(tmp_path, row, message):
    make_frames(tmp_path, "v", "0.jpg")
    place = f"{tmp_path / 'videochat_instruct_11k.json'}, record 2: "
    with pytest.raises(ValueError, match=re.escape(place + message)):
        converted(tmp_path, [{"video": "v.mp4", "QA": []}, row], image_root=tmp_path)


def test_a_frame_whose_tag_is_not_closed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="record 1: an image tag is not closed"):
        converted(tmp_path, [{"input": "f0 <img_path>a.jpg what?", "output": "x"}])
