"""MPT-1B's architecture against numbers recorded from the published code: same weights and inputs, same outputs."""

import pytest
import torch
from recordings import FLOATS, assert_recorded, read_json
from recordings import GOLDENS as ALL_GOLDENS
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo.src.mosaic_gpt import MosaicGPTForCausalLM

GOLDENS = ALL_GOLDENS / "mosaic_gpt"


@pytest.fixture(scope="module")
def model() -> MosaicGPTForCausalLM:
    return MosaicGPTForCausalLM.from_pretrained(GOLDENS).eval()


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(GOLDENS / "io.safetensors")


def test_the_parameters_are_the_recorded_ones(model):
    recorded = load_file(GOLDENS / "model.safetensors")
    ours = dict(model.named_parameters())
    assert set(ours) == set(recorded)
    for name in recorded:
        assert_recorded("mosaic_gpt weights", ours[name].detach(), recorded[name], rtol=0, atol=0, name=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_the_recorded_ones(model, io, side):
    mask = io[f"attention_mask_{side}"]
    with torch.no_grad():
        logits = model(input_ids=io["input_ids"], attention_mask=mask).logits
    attended = mask.bool()
    assert_recorded("mosaic_gpt logits", logits[attended], io[f"logits_{side}"][attended], **FLOATS, name=side)


def test_loss_equals_the_recorded_one(model, io):
    with torch.no_grad():
        loss = model(io["input_ids"], attention_mask=io["attention_mask_right"], labels=io["labels"]).loss
    assert_recorded("mosaic_gpt loss", loss[None], io["loss"], **FLOATS)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids_are_the_recorded_ones(model, use_cache):
    recorded = read_json("mosaic_gpt", "greedy.json")
    prompt, new = recorded["prompt"], recorded["greedy"]
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=len(new), do_sample=False, use_cache=use_cache)
    assert ids[0].tolist() == prompt + new
