"""Frames of a video as images, at even distances in time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from instruction_dataset.image_files import save_image

if TYPE_CHECKING:
    from av.container import InputContainer

QUALITY = 90
"""Of JPEG files."""


class Frame(NamedTuple):
    """An image of a video."""

    seconds: float
    """From the start of the video."""
    path: str
    """Relative to the folder of images."""


def extract(video: Path, folder: Path, name: str, count: Callable[[float], int], side: int) -> list[Frame]:
    """Frames of a video as square images `name/0.jpg`, ... in a folder; those that are all there are not made again.

    `count` gives their number by the seconds of the video, `side` is in pixels. Raises ValueError for a video that
    cannot be decoded.
    """
    av = pyav()
    try:
        with av.open(video) as container:
            length = _seconds(container)
            times = _middles(length, count(length))
            frames = [Frame(seconds, f"{name}/{number}.jpg") for number, seconds in enumerate(times)]
            if not all((folder / frame.path).exists() for frame in frames):
                for frame, image in zip(frames, _images(container, times), strict=True):
                    save_image(image.resize((side, side)), folder / frame.path, quality=QUALITY)
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
    if not container.streams.video or not container.duration:
        raise ValueError(f"video {container.name} has no pictures, or no known length; fetch it again")
    return container.duration / 1_000_000


def _middles(length: float, count: int) -> list[float]:
    """The middles of so many equal parts of a time."""
    return [length * (part + 0.5) / count for part in range(count)]


def _images(container: "InputContainer", times: Sequence[float]) -> Iterator[Image.Image]:
    """The image that is seen at each of the times, which rise."""
    shown, wanted = None, 0
    for frame in container.decode(video=0):
        # a frame without a time of its own goes on showing what is there
        while shown is not None and wanted < len(times) and (frame.time or 0.0) > times[wanted]:
            yield shown.to_image()
            wanted += 1
        if wanted == len(times):
            return
        shown = frame
    if shown is None:
        raise ValueError(f"video {container.name} has no pictures; fetch it again")
    for _ in times[wanted:]:
        yield shown.to_image()
