"""Image files to pixels as in 2023: opened, padded to squares of the recorded colours, and through the tower's transform."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recordings import GOLDENS, TOWERS, assert_recorded, read_json
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo.instruction_tuning.data.batches import collate
from open_flamingo.instruction_tuning.data.conversation import Conversation
from open_flamingo.instruction_tuning.data.images import load_image, open_image, pad_to_square
from open_flamingo.instruction_tuning.data.loader import Sample
from open_flamingo.instruction_tuning.data.tokens import fits
from open_flamingo.src.vision import create_vision_encoder

FILES = GOLDENS / "shared" / "data" / "images"
GOLDEN = "images_processed"
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def transform() -> Callable[[Image.Image], Tensor]:
    return create_vision_encoder(str(TOWERS / "tiny-vit.json"), "none")[1]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDENS / "shared" / "data" / "images_processed.safetensors")


@pytest.mark.parametrize("name", ["wide_rgb", "tall_gray", "square_rgba"])
def test_pixels_of_a_file_are_the_recorded_ones(transform, recorded, name):
    assert_recorded(GOLDEN, load_image(FILES / f"{name}.png", transform), recorded[name], **EXACT, name=name)


@pytest.mark.parametrize(("shape", "file"), [("wide", "wide_rgb"), ("tall", "tall_gray")])
def test_pixels_padded_to_a_square_of_the_recorded_colour_are_the_recorded_ones(transform, recorded, shape, file):
    # the 2023 code drew the colour from NumPy's generator, we from that of the sample: only the draw differs
    color = tuple(read_json("shared", "data", "images_processed.json")[f"color_{shape}"])
    ours = transform(pad_to_square(open_image(FILES / f"{file}.png"), color))
    assert_recorded(GOLDEN, ours, recorded[f"train_padded_{shape}"], **EXACT, name=shape)


def test_a_black_picture_is_the_recorded_one(transform, recorded):
    """What the 2023 inferencer gave to text without images; we give nothing, which attends nothing as well."""
    ours = transform(Image.new("RGB", (32, 32)))
    assert_recorded(GOLDEN, ours, recorded["inferencer_black_image"], **EXACT, name="black")


def test_a_missing_file_which_was_all_zeros_in_2023_is_refused(transform, recorded):
    assert not recorded["missing_file"].any()
    with pytest.raises(ValueError, match=r"nowhere\.png does not exist"):
        load_image(Path("nowhere.png"), transform)


def test_the_slots_that_2023_filled_with_zeros_do_not_exist(transform, recorded):
    wide, *padding = recorded["padded_to_3"]
    assert not torch.stack(padding).any()
    sample = Sample(Conversation([0], [False], ["wide_rgb.png"]), [load_image(FILES / "wide_rgb.png", transform)])
    batch = collate([sample], pad_token_id=0, image_shape=(3, 32, 32))
    assert_recorded(GOLDEN, batch.images, wide[None, None], **EXACT, name="padded_to_3")


def test_a_record_with_too_many_images_which_2023_cut_is_left_out(recorded):
    max_img = len(recorded["too_many"])
    assert torch.equal(recorded["too_many"], torch.stack([recorded["wide_rgb"], recorded["tall_gray"]]))
    sizes = np.array([[20, 20, 9, max_img], [20, 20, 9, max_img + 1]])
    assert fits(sizes, max_length=10, max_img=max_img).tolist() == [True, False]
