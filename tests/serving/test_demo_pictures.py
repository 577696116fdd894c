"""What the demo sends of images, and what it keeps in its log."""

import json
import struct
import zlib
from collections.abc import Iterator
from datetime import datetime

import pytest
from PIL import Image

from demo.log import TurnLog
from demo.pictures import EXAMPLES, SIDE, data_url, examples, prepare

PNG = b"\x89PNG\r\n\x1a\n"


def test_small_images_are_sent_as_they_are_and_large_ones_smaller(tmp_path, pictures):
    sent = prepare(pictures / "red.png", tmp_path)
    assert sent.read_bytes() == (pictures / "red.png").read_bytes()
    assert data_url(sent).startswith("data:image/png;base64,")
    Image.new("RGBA", (3000, 1500), (0, 0, 0, 0)).save(tmp_path / "large.png")
    with Image.open(prepare(tmp_path / "large.png", tmp_path)) as small:
        assert small.size == (SIDE, SIDE // 2)
        assert small.getpixel((5, 5)) == (255, 255, 255)


def test_an_image_that_lies_on_its_side_is_sent_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(tmp_path / "side.jpg", exif=exif)
    with Image.open(prepare(tmp_path / "side.jpg", tmp_path)) as upright:
        assert upright.size == (SIDE // 2, SIDE)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SMALLEST = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
TOO_LONG = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 21)))
"""More of a comment than Pillow unpacks."""


@pytest.mark.parametrize(
    "content", [b"", b"no image", PNG, b"<svg/>", PNG + png_chunk(b"IHDR", b"short"), PNG + SMALLEST + TOO_LONG]
)
def test_what_is_no_image_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.png is not an image that can be read"):
        prepare(tmp_path / "x.png", tmp_path)


@pytest.mark.parametrize("side", [8000, 20000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_read(tmp_path, side):
    header = struct.pack("<2sIII", b"BM", 54, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
    (tmp_path / "x.bmp").write_bytes(header)
    with pytest.raises(ValueError, match=r"^x\.bmp has more than 50 million pixels; make it smaller$"):
        prepare(tmp_path / "x.bmp", tmp_path)


def test_the_examples_are_small_and_come_with_scikit_image(tmp_path):
    found = examples(tmp_path)
    assert [about for _, about in found] == list(EXAMPLES.values())
    assert all(path.stat().st_size < 512 * 1024 for path, _ in found)


@pytest.fixture
def rows(tmp_path) -> Iterator:
    """The log in `tmp_path / "log"`, read back."""

    def read() -> list[dict]:
        (path,) = (tmp_path / "log").glob("*.jsonl")
        assert path.stem == f"{datetime.now().astimezone():%Y-%m-%d}"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return read


def test_the_log_has_a_line_per_exchange_and_images_by_digest(tmp_path, pictures, rows):
    log = TurnLog(tmp_path / "log")
    log.add([pictures / "red.png"], question="Größe?\n", answer="1")
    log.add([], question="\udc80", answer="2")
    assert [(row["question"], row["answer"], len(row["images"])) for row in rows()] == [
        ("Größe?\n", "1", 1),
        ("?", "2", 0),
    ]
    assert set(rows()[0]["images"][0]) == {"sha256"}


def test_the_log_keeps_images_where_asked_to(tmp_path, pictures, rows):
    log = TurnLog(tmp_path / "log", keeps_images=True)
    for _ in range(2):
        log.add([pictures / "red.png"], question="Which?")
    (kept,) = (tmp_path / "log" / "images").iterdir()
    assert rows()[0]["images"] == [{"sha256": kept.stem, "file": f"images/{kept.name}"}]
    assert kept.read_bytes() == (pictures / "red.png").read_bytes()
