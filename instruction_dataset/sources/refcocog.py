"""RefCOCOg (Google RefExp): objects in COCO images, and what tells them from others; by a box, or cut out."""

import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from instruction_dataset.converting import Job, Row, Source, rows_at
from instruction_dataset.readers import coco_2014
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._crops import Corners, Crops, clamped
from instruction_dataset.sources._questions import REGION, as_sentence

SPLITS = ("train", "val")
COCO = "train"
"""Of COCO, which holds the images of both splits."""

Place = tuple[int, Corners]
"""The id of an image, and a box in it."""
Show = Callable[[int, int, Corners], tuple[str, str] | None]
"""From the ids of annotation and image, and a box, to the tag of the image and what names the region."""


@dataclass(frozen=True)
class Regions:
    """What is known of all annotations before the first record is made."""

    raw: dict[int, str]
    """Expressions, by their ids."""
    boxes: dict[int, Corners]
    """By annotation."""
    longest: dict[Place, str]
    """The longest expression of each place; a place that has its record is taken out."""


def convert_boxes(source: Path, job: Job) -> Iterator[Record]:
    """One record per box, which the question gives as fractions of the image."""
    sizes = job.index(rows_at(_instances(source), "images"), _size)
    return _convert(source, job, partial(_show_box, sizes=sizes))


def convert_crops(source: Path, job: Job) -> Iterator[Record]:
    """One record per box, which the question shows as an image of its own beside the whole one."""
    return _convert(source, job, partial(_show_crop, crops=Crops.of(job), job=job))


def _convert(source: Path, job: Job, show: Show) -> Iterator[Record]:
    file = source / f"google_refexp_{job.split}_201511.json"
    regions = read_regions(file, _instances(source), job)
    yield from job.each(rows_at(file, "annotations"), partial(records, regions=regions, show=show, job=job))


def read_regions(file: Path, instances: Path, job: Job) -> Regions:
    """The boxes of annotations, from COCO, and the longest expression of each, equal boxes of an image being one."""
    raw = job.index(rows_at(file, "refexps"), lambda row: (row.number_of("refexp_id"), row.text("raw").strip()))
    # malformed annotations are refused, and counted, when their records are made
    chosen = Job(skip_bad=True).index(rows_at(file, "annotations"), partial(_chosen, raw=raw))
    wanted = (row for row in rows_at(instances, "annotations") if _is_wanted(row, chosen))
    boxes = job.index(wanted, lambda row: (row.number_of("id"), _box(row)))
    longest: dict[Place, str] = {}
    for annotation, (image, expression) in chosen.items():
        if annotation in boxes:
            place = (image, boxes[annotation])
            longest[place] = max(longest.get(place, ""), expression, key=len)
    return Regions(raw, boxes, longest)


def records(row: Row, regions: Regions, show: Show, job: Job) -> Iterator[Record]:
    """The record of an annotation, unless one of an equal box was there before."""
    annotation, (image, _) = _chosen(row, regions.raw)
    if annotation not in regions.boxes:
        raise ValueError(f"field 'annotation_id' is {annotation}, of which COCO's {COCO} annotations have no box")
    box = regions.boxes[annotation]
    expression = regions.longest.pop((image, box), None)
    if expression is None:
        job.leave_out("another annotation has the same box")
    elif shown := show(annotation, image, box):
        whole, region = shown
        yield Record(whole + job.rng.choice(REGION).format(region), as_sentence(expression))


def _chosen(row: Row, raw: dict[int, str]) -> tuple[int, tuple[int, str]]:
    """The id of an annotation, with its image and its longest expression; empty where it has none."""
    ids = row.items("refexp_ids")
    unknown = [number for number in ids if not isinstance(number, int) or number not in raw]
    if unknown:
        raise ValueError(f"field 'refexp_ids' names {unknown[0]}, of which 'refexps' has no text")
    expression = max((raw[number] for number in ids), key=len, default="")
    return row.number_of("annotation_id"), (row.number_of("image_id"), expression)


def _is_wanted(row: Row, chosen: Container[int]) -> bool:
    number = row.value["id"] if "id" in row else None
    return not isinstance(number, int) or number in chosen  # what is no number is refused later, by its record


def _box(row: Row) -> Corners:
    box: list[Any] = row.items("bbox")
    if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise ValueError(f"field 'bbox' must be four numbers, not {box}")
    left, top, width, height = box
    return left, top, left + width, top + height


def _size(row: Row) -> tuple[int, tuple[int, int]]:
    size = row.number_of("width"), row.number_of("height")
    if not all(size):
        raise ValueError("fields 'width' and 'height' must be above 0")
    return row.number_of("id"), size


def _show_box(_: int, image: int, box: Corners, sizes: dict[int, tuple[int, int]]) -> tuple[str, str]:
    if image not in sizes:
        raise ValueError(f"field 'image_id' is {image}, of which COCO's {COCO} images have no size")
    columns, lines = sizes[image]
    left, top, right, bottom = clamped(box, sizes[image])
    fractions = {"left": left / columns, "top": top / lines}
    fractions |= {"width": (right - left) / columns, "height": (bottom - top) / lines}
    region = json.dumps({side: round(value, 3) for side, value in fractions.items()})
    return image_tag(coco_2014(COCO, image)), region


def _show_crop(annotation: int, image: int, box: Corners, crops: Crops, job: Job) -> tuple[str, str] | None:
    path = coco_2014(COCO, image)
    if not job.has_image(path):
        job.leave_out("the image is not there")
        return None
    (region,) = crops.cut(path, {f"refcocog_cropped/{annotation}.jpg": box})
    return crops.whole(path), region


def _instances(source: Path) -> Path:
    return source / f"instances_{COCO}2014.json"


_FILES = f"google_refexp_{{split}}_201511.json, and instances_{COCO}2014.json of COCO"
_ORIGIN = "https://github.com/mjhucla/Google_Refexp_toolbox"
SOURCES = {
    "refcocog": Source(
        convert=convert_boxes,
        files=_FILES,
        origin=_ORIGIN,
        images="COCO train2014",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
    "refcocog-cropped": Source(
        convert=convert_crops,
        files=_FILES,
        origin=_ORIGIN,
        images="COCO train2014, of which pieces are cut",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
}
