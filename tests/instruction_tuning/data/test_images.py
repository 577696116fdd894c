"""Image files: the right way up, RGB, square in the middle, and refused by name where they cannot be read."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import EXACT
from toy import small_tensor

from open_flamingo.instruction_tuning.data.images import load_image, load_images, open_image, pad_to_square

ORIENTATION = 0x0112
ROTATED_90_CLOCKWISE = 6
TRUNCATED_BYTES = 150


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    """Random pixels that depend on nothing."""
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.fixture
def saved(tmp_path):
    """Saves an image as PNG."""

    def save(image, **options):
        image.save(tmp_path / "saved.png", **options)
        return tmp_path / "saved.png"

    return save


def test_the_exif_orientation_is_applied(saved):
    pixels = noise(3, 5, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED_90_CLOCKWISE
    image = open_image(saved(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(np.array(image), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_every_mode_becomes_rgb(saved, mode):
    image = Image.fromarray(noise(6, 4, 3)).convert(mode)
    opened = open_image(saved(image))
    assert opened.mode == "RGB"
    np.testing.assert_array_equal(np.array(opened), np.array(image.convert("RGB")))


def test_16_bit_grey_keeps_its_shades(saved):
    grey = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    opened = np.array(open_image(saved(Image.fromarray(grey))))
    np.testing.assert_array_equal(opened, np.repeat((grey / 257).round()[..., None], 3, axis=2))


@pytest.mark.parametrize(("width", "height", "box"), [(6, 2, (0, 2, 6, 4)), (2, 6, (2, 0, 4, 6)), (4, 4, (0, 0, 4, 4))])
def test_padding_to_a_square_puts_the_image_in_the_middle_of_one_colour(width, height, box):
    pixels = noise(height, width, 3)
    padded = pad_to_square(Image.fromarray(pixels), (1, 2, 3))
    expected = np.full((max(width, height), max(width, height), 3), (1, 2, 3))
    left, top, right, bottom = box
    expected[top:bottom, left:right] = pixels
    np.testing.assert_array_equal(np.array(padded), expected)


def test_about_half_of_the_training_images_are_padded_and_the_same_rng_gives_the_same_tensor(saved):
    path = saved(Image.fromarray(noise(8, 24, 3)))
    plain = load_image(path, small_tensor)
    drawn = [load_images([path], small_tensor, random.Random(seed))[0] for seed in range(40)]
    again = [load_images([path], small_tensor, random.Random(seed))[0] for seed in range(40)]
    torch.testing.assert_close(drawn, again, **EXACT)
    assert 10 <= sum(torch.equal(image, plain) for image in drawn) <= 30


def test_without_an_rng_an_image_is_left_as_it_is(saved):
    image = Image.fromarray(noise(8, 24, 3))
    torch.testing.assert_close(load_image(saved(image), small_tensor), small_tensor(image), **EXACT)


def test_a_missing_image_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"image .*nowhere\.png does not exist"):
        open_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a", b"P6 3"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image .*text\.png"):
        open_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_image_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(32, 32, 3)).save(path)
    path.write_bytes(path.read_bytes()[:TRUNCATED_BYTES])
    with pytest.raises(ValueError, match=rf"image .*cut\.{suffix}"):
        open_image(path)


def test_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=f"image {tmp_path}"):
        open_image(tmp_path)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"]),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_file_is_an_image_or_one_sentence_that_names_it(tmp_path, kind, kept, changes):
    buffer = BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path / f"damaged.{kind.lower()}"
    path.write_bytes(content[: int(kept * len(content)) if len(changes) % 2 else len(content)])
    said = outcome(path)
    assert said == "RGB" or (said.startswith(f"image {path} ") and "\n" not in said)


def outcome(path: Path) -> str:
    """The mode of an image that could be opened, or the refusal."""
    try:
        return open_image(path).mode
    except ValueError as error:
        return str(error)
