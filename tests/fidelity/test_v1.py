"""OpenFlamingo's first version against the numbers of 2023: text attends the next image, generation ends at id 2."""

from functools import cached_property
from typing import Any

import pytest
import torch
from recordings import (
    FLOATS,
    GOLDENS,
    TOWERS,
    Recording,
    assert_gradient_norms,
    assert_recorded,
    indexed,
    loss_and_gradients,
    read_json,
    states_of_layers,
    watched_attention,
)
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo import create_model_and_transforms
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints

NEXT = {"media_attention": "next"}
NAME = "llama/v1_n1"
SETTINGS = ["greedy", "beam3", "greedy_norep3"]


class FirstVersion(Recording):
    """The recordings of v1: weights and inputs are those of the later model, the mask is another."""

    def v1_json(self, name: str) -> Any:
        return read_json(NAME, f"{name}.json")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(GOLDENS / NAME / "forward.safetensors")

    @cached_property
    def prompt(self) -> dict[str, Tensor]:
        """Arguments of `generate`."""
        generate = self.v1_json("generate")
        return {
            "vision_x": load_file(GOLDENS / NAME / "generate.safetensors")["vision_x"],
            "lang_x": torch.tensor(generate["input_ids"]),
            "attention_mask": torch.tensor(generate["attention_mask"]),
        }

    def generate(self, **settings: Any) -> list[list[int]]:
        """The new ids."""
        ids = self.model.generate(**self.prompt, do_sample=False, pad_token_id=0, **settings)
        return ids[:, self.prompt["lang_x"].shape[1] :].tolist()


V1 = FirstVersion("llama", 1, NEXT)


@pytest.fixture(scope="module")
def v1() -> FirstVersion:
    return V1


@pytest.fixture(scope="module")
def states(v1) -> dict[str, Tensor]:
    return states_of_layers(v1.model, v1.expected)


def test_pad_bos_and_eos_of_the_tokenizer_are_the_fixed_ids():
    _, _, tokenizer = create_model_and_transforms(str(TOWERS / "tiny-vit.json"), "none", str(V1.lm), **NEXT)
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == V1.v1_json("generate")["tokenizer_pad_bos_eos"]


def test_logits_and_attention_equal_the_recorded_ones(v1, states):
    attended = v1.expected["attention_mask"].bool()
    names = {name for name in v1.expected if name.startswith("xattn_attn_out.")} | {"logits"}
    assert names <= set(states)
    for name in sorted(names):
        golden = f"{NAME} {name.partition('.')[0]}"
        assert_recorded(golden, states[name][attended], v1.expected[name][attended], **FLOATS, name=name)


def test_the_positions_that_attend_are_the_recorded_ones(v1, states):
    summary = v1.v1_json("summary")
    for name in (name for name in states if name.startswith("xattn_attn_out.")):
        assert states[name].any(dim=-1).tolist() == summary["positions_with_nonzero_xattn"]
    images = v1.expected["lang_x"] == v1.model.media_token_id
    assert images.tolist() == summary["image_positions"]


def test_logits_differ_from_those_of_the_later_mask_as_recorded(v1, states):
    attended = v1.expected["attention_mask"].bool()
    difference = (states["logits"] - v1.batch["logits"])[attended].abs().max()
    expected = torch.tensor(v1.v1_json("summary")["max_logit_diff_vs_v2"])
    assert_recorded(f"{NAME} difference of masks", difference, expected, **FLOATS)


def test_loss_and_gradient_norms_equal_the_recorded_ones(v1):
    loss, gradients = loss_and_gradients(v1.model, v1.expected)
    assert_recorded(f"{NAME} loss", loss[None], v1.expected["loss"], **FLOATS)
    assert_gradient_norms(f"{NAME} gradient norms", gradients, v1.v1_json("summary")["grad_norms"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_generated_ids_are_the_recorded_ones(v1, setting):
    recorded = v1.v1_json("generate")[setting]
    assert v1.generate(**recorded["kwargs"]) == recorded["new_ids"]


def test_generation_ends_at_the_recorded_id_unless_told_otherwise(v1):
    end = v1.v1_json("generate")["eos_used_by_generate"]
    others = [token for token in range(v1.expected["logits"].shape[-1]) if token != end]
    assert v1.generate(max_new_tokens=3, suppress_tokens=others) == [[end], [end]]
    assert v1.generate(max_new_tokens=3, suppress_tokens=others, eos_token_id=7) == [[end] * 3] * 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_step_of_generation_attends_an_image_at_its_last_token_as_recorded(v1, setting):
    """Nothing follows the last image of a prompt that it could belong to, and one-token steps hold no image."""
    recorded = v1.v1_json("generate")[setting]
    with watched_attention(v1.model) as runs:
        v1.generate(**recorded["kwargs"])
    seen = [[run.length, run.largest_at_end] for run in runs]
    assert seen[: len(recorded["xattn_T_and_lastpos_absmax"])] == recorded["xattn_T_and_lastpos_absmax"]


@pytest.mark.parametrize("second_names", [False, True])
def test_a_v1_state_dict_gives_the_recorded_logits(v1, second_names, tmp_path):
    """Its tower is the whole of CLIP, and released files name blocks `gated_cross_attn_layers` alone."""
    state = indexed(v1.v1_json("state_dict_keys"))
    if second_names:
        assert any(".gated_cross_attn_layers." in key for key in state)
        state = {key: value for key, value in state.items() if ".gated_cross_attn_layer." not in key}
    torch.save(state, tmp_path / "v1.pt")
    model = v1.random()
    load_checkpoints(model, str(tmp_path / "v1.pt"))
    attended = v1.expected["attention_mask"].bool()
    ours = states_of_layers(model, v1.expected)["logits"]
    assert_recorded(f"{NAME} loaded logits", ours[attended], v1.expected["logits"][attended], **FLOATS)
