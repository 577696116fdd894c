"""What several sources share: the images of COCO and Visual Genome, captions as COCO and Karpathy write them, CSV."""

import csv
from collections.abc import Iterator
from pathlib import Path

from instruction_dataset.converting import Job, Row, rows, rows_at
from instruction_dataset.reading import LONGEST_ROW

csv.field_size_limit(LONGEST_ROW)


def coco_2014(split: str, image_id: int) -> str:
    """The path of an image in the folders of COCO 2014."""
    return f"{split}2014/COCO_{split}2014_{image_id:012d}.jpg"


def coco_2017(split: str, image_id: int) -> str:
    """The path of an image in the folders of COCO 2017."""
    return f"{split}2017/{image_id:012d}.jpg"


def visual_genome(image_data: Path, job: Job) -> dict[int, str]:
    """The path of each Visual Genome image, such as `VG_100K_2/2392588.jpg`, from `image_data.json`."""
    return job.index(rows(image_data), lambda row: (row.number_of("image_id"), url_tail(row.text("url"))))


def url_tail(url: str) -> str:
    """The last two parts of a Visual Genome address: folder and file."""
    return "/".join(url.split("/")[-2:])


def files_of(source: Path, *patterns: str) -> list[Path]:
    """The file given, or the files of a folder that the first pattern to match any names, sorted.

    Raises ValueError where there is none.
    """
    if source.is_file():
        return [source]
    found = next(filter(None, (sorted(source.glob(pattern)) for pattern in patterns)), None)
    if found is None:
        raise ValueError(f"{source} holds no {' and no '.join(patterns)}; check --source, or name a file there")
    return found


def karpathy(file: Path) -> Iterator[Row]:
    """The images of a Karpathy-style file: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    return rows_at(file, "images")


def csv_rows(file: Path) -> Iterator[Row]:
    """The rows of a CSV file by the names of its header, streamed; all fields are strings, and a cut row lacks its last.

    Raises ValueError for an encoding other than UTF-8 and for unsound quotes.
    """
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            for number, fields in enumerate(table, start=1):
                fault = "it has more fields than the header; quote its commas" if None in fields else ""
                yield Row({name: text for name, text in fields.items() if text is not None}, file, number, fault=fault)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; check --source") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a file that you may read") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{file}, record {number + 1} is not sound CSV ({error}); fetch the file again") from error
    if not number:
        raise ValueError(f"{file} has no rows below a header; is it the file that the source is made of?")
