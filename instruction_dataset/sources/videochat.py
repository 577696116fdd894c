"""VideoChat: descriptions of and conversations about WebVid's videos, of which a few frames are shown.

Two forms: records in which each frame is named, as the frames were taken in 2023, and the published one, which names
videos. For that, the frames of `a/1.mp4` are the images in the folder `a/1` of --image_root; with --image_output they
are made of the video, which lies in --image_root.
"""

import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import Turn, expand, refuse_tags
from instruction_dataset.image_files import inside
from instruction_dataset.readers import files_of
from instruction_dataset.records import IMAGE_TAG, Record, image_tag
from instruction_dataset.sources._frames import extract

FRAMES = 8
"""At most so many of a video, evenly spread."""
SIDE = 336
"""Of a frame that is made, in pixels."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

_MARK = re.compile(rf"\bf\d\d? (?={IMAGE_TAG})")
_SPEAKER = re.compile(r"\n+### (Human|Assistant): ?")


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer."""
    (file,) = files_of(source, "videochat_instruct_11k_frames.train.multi_round.json", "videochat_instruct_11k.json")
    return job.each(_with_images(job, rows(file)), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a row of either form."""
    return asked(job, row) if _names_video(row) else framed(row)


def framed(row: Row) -> Iterator[Record]:
    """The record of a row whose frames are named, without their numbers and the dialogue's blank lines."""
    yield Record(_SPEAKER.sub(r"\n### \1: ", _MARK.sub("", row.text("input"))), row.text("output"))


def asked(job: Job, row: Row) -> Iterator[Record]:
    """The records of a row that names its video, none where no frame of it is there."""
    paths = _frames(job, row.text("video"))
    if not paths:
        job.leave_out("the video is not there" if job.image_output else "the video has no frames")
    else:
        yield from expand([_turn(exchange) for exchange in row.rows("QA")], "".join(map(image_tag, paths)))


def frames(root: Path, video: str) -> list[str]:
    """The frames of a video in order, relative to `root`: `f2.jpg` comes before `f10.jpg`."""
    folder = _stem(video)
    if not os.path.isdir(inside(root, folder)):  # noqa: PTH112 - False also for what cannot be a folder's name
        return []
    names = [file.name for file in (root / folder).iterdir() if file.suffix.lower() in PICTURES]
    names.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])
    if len(names) > FRAMES:
        names = [names[i * (len(names) - 1) // (FRAMES - 1)] for i in range(FRAMES)]
    return [f"{folder}/{name}" for name in names]


def _frames(job: Job, video: str) -> list[str]:
    if job.image_output is None:
        return frames(job.images(), video)
    name, file = _stem(video), inside(job.images(), video)
    if not job.has_image(video):
        return []
    return [frame.path for frame in extract(file, job.image_output, name, lambda _seconds: FRAMES, SIDE)]


def _stem(video: str) -> str:
    """The path of a video without its ending, which is that of the folder of its frames."""
    path = PurePosixPath(video)
    if not path.name:
        raise ValueError(f"field 'video' must be the path of a video, not {video!r}")
    return str(path.with_suffix(""))


def _names_video(row: Row) -> bool:
    return "video" in row or "QA" in row


def _with_images(job: Job, everything: Iterable[Row]) -> Iterator[Row]:
    """The rows; ValueError, which is not a fault of a row, where one names a video and no folder of images was named."""
    for row in everything:
        if _names_video(row):
            job.images()
        yield row


def _turn(exchange: Row) -> Turn:
    """A question and its answer; `i`, where it is there, says what to do with the question."""
    question = "\n".join(exchange.text(key) for key in ("i", "q") if key in exchange and exchange.text(key))
    return refuse_tags(question), refuse_tags(exchange.text("a"))


SOURCES = {
    "videochat": Source(
        convert=convert,
        files="videochat_instruct_11k.json, or videochat_instruct_11k_frames.train.multi_round.json",
        origin="https://github.com/OpenGVLab/InternVideo, Data/instruction_data",
        images=f"at most {FRAMES} frames of each WebVid video, in a folder of its name without .mp4, or made of the video",
        records=37_941,
    )
}
