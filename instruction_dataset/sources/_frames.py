"""Frames of a video as images, at even distances in time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from instruction_dataset.image_files import inside, save_image

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

QUALITY = 90
"""Of JPEG files."""


class Frame(NamedTuple):
    """An image of a video."""

    seconds: float
    """From the start of the pictures."""
    path: str
    """Relative to the folder of images."""


def extract(video: Path, folder: Path, name: str, count: Callable[[float], int], side: int) -> list[Frame]:
    """Frames of a video as square images `name/0.jpg`, ... in a folder; those that are all there are not made again.

    `count` gives their number by the seconds of the video, `side` is in pixels. Raises ValueError for a video that
    cannot be decoded or is cut short, and for a name that leads out of the folder.
    """
    av = pyav()
    try:
        # a title, or whatever else a file says of itself, may be in any encoding
        with av.open(video, metadata_errors="replace") as container:
            length = _seconds(container)
            times = _middles(length, count(length))
            frames = [Frame(seconds, f"{name}/{number}.jpg") for number, seconds in enumerate(times)]
            files = [inside(folder, frame.path) for frame in frames]
            if not all(file.exists() for file in files):
                for file, image in zip(files, _images(container, times), strict=True):
                    save_image(image.resize((side, side)), file, quality=QUALITY)
    except av.FFmpegError as error:
        raise ValueError(f"video {video} cannot be decoded ({error.strerror}); fetch it again") from error
    return frames


def pyav() -> Any:
    """The module that decodes videos; ValueError where it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ValueError("videos are read with PyAV; run `pip install av`") from error
    return av


def _seconds(container: "InputContainer") -> float:
    """How long the pictures of a video last, or all of it where they have no length of their own."""
    pictures = next(iter(container.streams.video), None)
    if pictures is None or not (pictures.duration or container.duration):
        raise ValueError(f"video {container.name} has no pictures, or no known length; fetch it again")
    return _clock(pictures, pictures.duration) or (container.duration or 0) / 1_000_000


def _clock(timed: "VideoStream | VideoFrame", ticks: int | None) -> float:
    """The seconds of so many ticks; none where they are not known."""
    return float((ticks or 0) * (timed.time_base or 0))


def _middles(length: float, count: int) -> list[float]:
    """The middles of so many equal parts of a time."""
    return [length * (part + 0.5) / count for part in range(count)]


def _images(container: "InputContainer", times: Sequence[float]) -> Iterator[Image.Image]:
    """The image that is seen at each of the times, which rise."""
    pictures = container.streams.video[0]
    start = _clock(pictures, pictures.start_time)
    shown, wanted = None, 0
    for frame in container.decode(pictures):
        # a frame without a time of its own goes on showing what is there
        while shown is not None and wanted < len(times) and _clock(frame, frame.pts) - start > times[wanted]:
            yield _upright(shown)
            wanted += 1
        if wanted == len(times):
            return
        shown = frame
    if shown is None:
        raise ValueError(f"video {container.name} has no pictures; fetch it again")
    end = _clock(shown, shown.pts) + _clock(shown, shown.duration) - start
    # without an index that counts them, the length may be that of the sound, and the last picture stays till then
    if pictures.frames and times[-1] > end:
        raise ValueError(f"video {container.name} ends after {end:.1f} seconds, before its time; fetch it again")
    for _ in times[wanted:]:
        yield _upright(shown)


def _upright(frame: "VideoFrame") -> Image.Image:
    """The picture of a frame as players show it: phones keep theirs on its side, with a note of the angle."""
    return frame.to_image().rotate(frame.rotation, expand=True)
