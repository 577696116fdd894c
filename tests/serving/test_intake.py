"""Images come out of requests as they are meant, from where they may come, and what is refused tells nothing."""

import asyncio
import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_flamingo.instruction_tuning.data.images import open_image
from open_flamingo.serving.intake import FORMATS, Limits, RequestError, read_images

LIMITS = Limits(images=2, image_bytes=20_000, image_pixels=10_000)


def picture(size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def read(*sources: str, limits: Limits = LIMITS) -> list[np.ndarray]:
    return asyncio.run(read_images(sources, limits, np.asarray))


def refusal(*sources: str, limits: Limits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(*sources, limits=limits)
    assert caught.value.status == 400
    return caught.value


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a picture, a way out of it, and a secret beside it."""
    inside, outside = tmp_path / "images", tmp_path / "secret"
    for path in (inside / "more", outside):
        path.mkdir(parents=True)
    for path in (inside, inside / "more", outside):
        (path / "picture.png").write_bytes(encoded(picture()))
    (inside / "note.txt").write_text("nothing to see")
    (inside / "link.png").symlink_to(outside / "picture.png")
    (inside / "linked").symlink_to(outside)
    (inside / "own.png").symlink_to(inside / "more" / "picture.png")
    (outside / "back.png").symlink_to(inside / "picture.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    (inside / "dangling.png").symlink_to(outside / "missing.png")
    os.mkfifo(inside / "pipe.png")
    return inside


# what is taken


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_in_a_request_is_the_image_of_the_file(format, tmp_path):
    data = encoded(picture(), format)
    (tmp_path / "file").write_bytes(data)
    (image,) = read(data_url(data, "image/anything"))
    np.testing.assert_array_equal(image, np.asarray(open_image(tmp_path / "file")))


def test_images_are_the_right_way_up_and_in_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, grey = read(data_url(encoded(picture(), exif=exif)), data_url(encoded(picture().convert("L"))))
    assert turned.shape == (20, 10, 3)
    assert grey.shape == (10, 20, 3)


def test_the_first_frame_of_an_animation_is_its_image():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    (image,) = read(data_url(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert image[0, 0].tolist() == [255, 0, 0]


def test_bytes_behind_an_image_are_not_looked_at():
    data = encoded(picture())
    (image,) = read(data_url(data + b"PK\x03\x04<script>"))
    np.testing.assert_array_equal(image, read(data_url(data))[0])


def test_files_are_read_under_the_folders_that_are_allowed(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    for allowed in (folder, tmp_path / "alias"):
        limits = Limits(2, 20_000, 10_000, folders=(tmp_path / "other", allowed))
        for name in (folder / "picture.png", folder / "own.png", folder / "more" / "picture.png"):
            assert read(str(name), limits=limits)[0].shape == (10, 20, 3)


# what is refused


def test_a_request_has_no_more_images_than_it_may():
    error = refusal(*[data_url(encoded(picture()))] * 3)
    assert error.message == "a request may have 2 images, and this one has 3"


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_that_is_cut_short_is_refused(format):
    # only runs of the last pixel may be missing, and noise has none
    data = encoded(picture((60, 60)), format)
    error = refusal(data_url(encoded(picture())), data_url(data[: len(data) // 2]))
    assert (error.code, error.message[:35]) == ("invalid_image", "image 2 is not an image that can be")


def png(width: int, height: int) -> bytes:
    """The beginning of a picture that says to be so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("size", [(101, 100), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_pixels_are_counted_before_any_is_decoded(size):
    error = refusal(data_url(png(*size)))
    assert (error.code, error.message) == (
        "image_too_large",
        "image 1 has more than the 10000 pixels that an image may have",
    )


def test_a_tile_larger_than_its_image_is_refused_before_there_is_room_made_for_it():
    size, tile, data = 1, 40_000, zlib.compress(bytes(9))
    shape = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1}
    tags = shape | {322: tile, 323: tile, 324: 8 + 2 + 12 * 10 + 4, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data
    message = refusal(data_url(tiff, "image/tiff")).message
    assert message == "image 1 is a TIFF of compressed tiles, which this server does not read"


def test_a_jpeg_of_countless_scans_is_refused():
    data = encoded(Image.new("RGB", (100, 100)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert len(read(data_url(data))) == 1
    assert refusal(data_url(data[:-2] + 100 * last + data[-2:])).message == "image 1 is a JPEG of too many scans"


def test_the_size_of_an_image_is_that_of_its_file(folder):
    data = encoded(picture())
    (folder / "exact.png").write_bytes(data)
    for source in (data_url(data), str(folder / "exact.png")):
        assert len(read(source, limits=Limits(1, len(data), 10_000, (folder,)))) == 1
        error = refusal(source, limits=Limits(1, len(data) - 1, 10_000, (folder,)))
        assert error.message == f"image 1 has more than the {len(data) - 1} bytes that an image may have"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a/*\0\0\0\0*/=1;alert(1)//",
        b"PK\x03\x04" + encoded(picture()),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(picture(), "PPM"),
        encoded(picture(), "ICO"),
    ],
    ids=["empty", "gif+script", "zip+png", "svg", "pdf", "eps", "ppm", "ico"],
)
def test_what_is_no_image_of_a_known_format_is_refused(data):
    assert refusal(data_url(data)).code == "invalid_image"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,AAA", "invalid_base64"),
        ("data:image/png;base64,AA=A", "invalid_base64"),
        ("data:image/png;base64,!!!!", "invalid_base64"),
        ("data:image/png;base64,AAAA\u00e9AAA", "invalid_base64"),
        ("data:image/png;base64,AAAA\ud800AAA", "invalid_base64"),
        ("data:image/png,AAAA", "invalid_image_url"),
        ("data:text/html;base64,AAAA", "invalid_image_url"),
        ("data:" + "x" * 1000, "invalid_image_url"),
        ("file:///etc/hostname", "invalid_image_url"),
        ("FTP://127.0.0.1/x.png", "invalid_image_url"),
        ("gopher://127.0.0.1/x.png", "invalid_image_url"),
        ("/etc/hostname", "invalid_image_url"),
        ("", "invalid_image_url"),
        ("https://127.0.0.1/x.png", "url_not_allowed"),
    ],
)
def test_other_sources_are_refused(url, code):
    assert refusal(url).code == code


def test_what_is_outside_the_folders_is_refused_alike_whether_it_exists_or_not(folder, monkeypatch):
    monkeypatch.chdir(folder)
    limits = Limits(1, 20_000, 10_000, folders=(folder,))
    secret = folder.parent / "secret" / "picture.png"
    sources = [
        *(
            secret,
            secret.with_name("missing.png"),
            folder / ".." / "secret" / "picture.png",
            folder / "linked/picture.png",
        ),
        *("../secret/picture.png", "linked/../secret/picture.png", "linked/../images/picture.png", "../images2"),
        *(folder / "link.png", folder / "dangling.png", folder / "loop.png", secret.with_name("back.png")),
        *(folder, folder / "linked", folder / "pipe.png", folder / "missing.png", "/proc/self/environ", "/dev/zero"),
        *("picture.png\0", "a\ud800.png", "x" * 5000, "%2e%2e/secret/picture.png", "~/picture.png"),
    ]
    messages = {refusal(str(source), limits=limits).message for source in sources}
    assert messages == {"image 1 is not a file in the folders that this server reads images from"}
    assert refusal("note.txt", limits=limits).code == "invalid_image"


def test_an_image_behind_a_refused_url_is_refused_in_words_that_say_nothing_of_the_network():
    limits = Limits(1, 20_000, 10_000, allow_urls=True)
    hosts = (
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.0.0.1:1",
    )
    messages = {refusal(f"http://{host}/x.png", limits=limits).message for host in hosts}
    assert messages == {"image 1 could not be fetched: send it as a data URL"}
