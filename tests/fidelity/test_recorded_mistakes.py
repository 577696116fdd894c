"""Deliberate mistakes move our logits as far as they moved those of the 2023 code."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from recordings import Recording, assert_recorded, attended_logits, read_json
from torch import nn

from open_flamingo import Flamingo
from open_flamingo.src.helpers import MaskedCrossAttention

CASES = [("opt", 1), ("opt", 2), ("llama", 1), ("mpt", 1), ("mpt", 2)]
RECORDINGS = {f"{lm}-n{every}": Recording(lm, every) for lm, every in CASES}
DISTANCES = {"rtol": 1e-3, "atol": 1e-5}
"""Of two outputs, each of which is off by rounding of some 1e-6."""


def swap_gates(model: Flamingo, _recorded: Recording) -> None:
    for block in model.gated_cross_attn_layers:
        block.attn_gate, block.ff_gate = block.ff_gate, block.attn_gate


def approximate_gelu(model: Flamingo, _recorded: Recording) -> None:
    for module in (m for m in model.modules() if isinstance(m, nn.GELU)):
        module.approximate = "tanh"


def attend_one_percent_sharper(model: Flamingo, _recorded: Recording) -> None:
    for module in (m for m in model.modules() if isinstance(m, MaskedCrossAttention)):
        module.to_q.weight.data.mul_(1.01)


def attend_all_images_before(model: Flamingo, recorded: Recording) -> None:
    """With the fault of 2023: text before the first image, whose scores are all masked, attended all images evenly.

    We give it nothing. Only the first sample has such text, and all of its image slots are filled.
    """
    model.only_attend_immediate_media = False
    is_image = recorded.batch["lang_x"][0] == model.media_token_id
    before, images = int(is_image.int().argmax()), int(is_image.sum())

    def attend_evenly(block, args):
        x, media = args
        _, values = media.latents.keys_values(block.attn)
        update = block.attn.to_out(values[:images].mean(dim=(0, 2)).flatten()) * block.attn_gate.tanh()
        x = x.clone()
        x[0, :before] += update
        return x, media

    for block in model.gated_cross_attn_layers:
        block.register_forward_pre_hook(attend_evenly)


MISTAKES: dict[str, Callable[[Flamingo, Recording], None]] = {
    "attn/ff gates swapped": swap_gates,
    "tanh GELU everywhere nn.GELU is used": approximate_gelu,
    "xattn scale +1%": attend_one_percent_sharper,
    "only_attend_immediate_media=False": attend_all_images_before,
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("recorded", RECORDINGS.values(), ids=RECORDINGS)
def test_a_mistake_moves_the_logits_as_far_as_recorded(recorded, mistake):
    model = deepcopy(recorded.model)
    MISTAKES[mistake](model, recorded)
    attended = recorded.batch["attention_mask"].bool()
    distance = (attended_logits(model, recorded.batch) - recorded.batch["logits"][attended]).abs().max()
    expected = torch.tensor(read_json("shared", "mutation_sensitivity.json")[recorded.name][mistake])
    assert_recorded(f"mutation_sensitivity: {mistake}", distance, expected, **DISTANCES)
