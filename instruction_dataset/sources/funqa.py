"""FunQA: questions about humorous, creative and magic videos, which are shown as frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._frames import Frame, extract, pyav

KINDS = {"H": "humor", "C": "creative", "M": "magic"}
"""By the first letter of a video's name."""
LOCALISATION = "1"
"""What ends the tasks whose answer is a span of time."""
FEW, MANY = 8, 16
LONG_SECONDS = 16.0
"""From which on a video is shown as many frames."""
SIDE = 336


@dataclass(frozen=True)
class Videos:
    """Where videos lie and their frames go, and what is known of those seen so far."""

    root: Path
    folder: Path
    split: str
    frames: dict[str, list[Frame]]
    """By the name of the video."""

    def path(self, name: str) -> Path:
        """Where a video lies; ValueError for a name of no known kind."""
        if name[:1] not in KINDS or PurePosixPath(name).name != name:
            raise ValueError(
                f"field 'visual_input' must be a file name that begins with {', '.join(KINDS)}, not {name!r}"
            )
        return self.root / self.split / f"{self.split}_{KINDS[name[0]]}" / name


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question that asks for no span of time; the frames are made where they are not there yet."""
    pyav()  # before the first row, so that its absence is not a fault of rows
    file = f"funqa_{job.split}.json"
    (questions,) = files_of(source, f"annotation_with_ID/{file}", file)
    root = job.image_root or (source.parent if source.is_file() else source)
    videos = Videos(root, job.image_folder(), job.split, {})
    return job.each(rows(questions), partial(records, videos=videos, job=job))


def records(row: Row, videos: Videos, job: Job) -> Iterator[Record]:
    """The record of a question: its frames, each with its time, before it or after it."""
    name, question = row.text("visual_input"), refuse_tags(row.text("instruction")).strip()
    answer, video = row.text("output").strip(), videos.path(name)
    if row.text("task").endswith(LOCALISATION):
        job.leave_out("it asks for a span of time")
    elif not video.is_file():
        job.leave_out("the video is not there")
    else:
        if name not in videos.frames:
            videos.frames[name] = extract(video, videos.folder, f"funqa/{job.split}/{video.stem}", how_many, SIDE)
        shown = "\n".join(f"{frame.seconds:.1f}s: {image_tag(frame.path)}" for frame in videos.frames[name])
        yield Record("\n".join((question, shown) if job.rng.random() < 0.5 else (shown, question)), answer)


def how_many(seconds: float) -> int:
    """The frames that show a video of so many seconds."""
    return MANY if seconds >= LONG_SECONDS else FEW


SOURCES = {
    "funqa": Source(
        convert=convert,
        files="annotation_with_ID/funqa_{split}.json, and the videos as {split}/{split}_humor/, _creative/ and _magic/",
        origin="https://funqa-benchmark.github.io",
        images="frames, made of the videos",
        licence="CC BY-NC-SA 4.0",
        splits=("train", "val", "test"),
    )
}
