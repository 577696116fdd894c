"""LoRA checkpoints of the 2023 code: same trained names, outputs, gradients and generated ids, images kept throughout."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import (
    FLOATS,
    GOLDENS,
    Recording,
    assert_gradient_norms,
    assert_recorded,
    attended_logits,
    indexed,
    loss_and_gradients,
    read_json,
    watched_attention,
)
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints, state_to_save
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning
from open_flamingo.src.weights import saved_name

HEAD = "lang_encoder.base_model.model.lm_head.weight"
NOT_SAVED = {
    # the head is the input embedding, which we save under that name (or, where 2023 froze it by name, did not)
    "opt": {HEAD, "lang_encoder.base_model.model.model.decoder.embed_positions.weight"},
    "mpt": {HEAD},
}
"""Recorded keys that we do not write: a second name of the input embedding, and OPT's frozen positions."""
ADDED = {"opt": set(), "mpt": {"lang_encoder.base_model.model.transformer.wte.weight"}}
"""Keys that we write and 2023 did not: MPT's input embedding, there only as `lm_head`."""


@dataclass
class LoraRecording:
    """What the 2023 code computed with one LoRA checkpoint on top of a recorded model."""

    base: Recording
    config: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.base.family}/peft/{self.config}"

    def json(self, name: str) -> Any:
        return read_json(self.name, f"{name}.json")

    @property
    def checkpoint(self) -> dict[str, Tensor]:
        """The recorded checkpoint, its names with DDP's `module.`."""
        return indexed(self.json("checkpoint_keys")["model_state_dict"])

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return load_file(GOLDENS / self.name / "outputs.safetensors")

    @cached_property
    def trained_names(self) -> list[str]:
        return prepare_model_for_tuning(self._bare, GOLDENS / self.name / "tuning_config.json")

    @cached_property
    def _bare(self) -> Flamingo:
        return self.base.pretrained(self.base.json("released_ckpt_keys"))

    @cached_property
    def model(self) -> Flamingo:
        """The base model with its adapters, both from files: base weights find the modules that LoRA wraps."""
        assert self.trained_names
        released = {key: self.base.weights[key] for key in self.base.json("released_ckpt_keys")}
        torch.save(released, self.folder / "base.pt")
        torch.save({"epoch": 0, "model_state_dict": self.checkpoint}, self.folder / "lora.pt")
        load_checkpoints(self._bare, f"{self.folder / 'base.pt'},{self.folder / 'lora.pt'}")
        return self._bare.eval()

    def generate(self, setting: str, **options: Any) -> Any:
        """What a recorded setting of generation returns."""
        recorded = self.json("generate")
        return self.model.generate(
            self.base.tensors("generate")["vision_x"],
            torch.tensor(recorded["input_ids"]),
            torch.tensor(recorded["attention_mask"]),
            do_sample=False,
            pad_token_id=self.base.json("generate")["hf_pad_token_id_used"],
            **recorded[f"flag_on_base_model.{setting}"]["kwargs"],
            **options,
        )


CASES = {"opt": "lora+perceiver_n2", "mpt": "lora[lm+xqttn]+perceiver_n2"}


@pytest.fixture(scope="module", params=CASES)
def lora(request, tmp_path_factory) -> LoraRecording:
    folder = tmp_path_factory.mktemp("lora")
    return LoraRecording(Recording(request.param, 2), CASES[request.param], folder)


def test_what_trains_with_lora_is_what_trained_in_2023(lora):
    recorded = {name for name, _ in lora.json("trainable_params")["trainable"]}
    assert {saved_name(name) for name in lora.trained_names} == recorded


def test_rank_and_scale_of_the_adapters_are_the_recorded_ones(lora):
    summary = lora.json("summary")
    adapters = [module for module in lora.model.modules() if hasattr(module, "lora_A")]
    assert len(adapters) == len(lora.json("trainable_params")["lora_modules"])
    for module in adapters:
        assert module.r == {"default": summary["lora_r"]}
        assert module.scaling == {"default": summary["lora_alpha"] / summary["lora_r"]}


def test_logits_with_lora_equal_the_recorded_ones(lora):
    attended = lora.base.batch["attention_mask"].bool()
    ours = attended_logits(lora.model, lora.base.batch)
    assert_recorded(f"{lora.name} logits", ours, lora.outputs["logits"][attended], **FLOATS)


def test_loss_and_gradient_norms_with_lora_equal_the_recorded_ones(lora):
    loss, gradients = loss_and_gradients(lora.model, lora.base.batch)
    assert_recorded(f"{lora.name} loss", loss[None], lora.outputs["loss"], **FLOATS)
    gradients = {saved_name(name): gradient for name, gradient in gradients.items()}
    assert_gradient_norms(f"{lora.name} gradient norms", gradients, lora.json("trainable_params")["grad_norms"])


@pytest.mark.parametrize("setting", ["greedy", "beam3", "greedy_norep3"])
def test_ids_generated_with_lora_are_those_of_2023_with_its_images_kept(lora, setting):
    recorded = lora.json("generate")[f"flag_on_base_model.{setting}"]
    prompt_length = len(lora.json("generate")["input_ids"][0])
    with watched_attention(lora.model) as runs:
        ids = lora.generate(setting)
    assert ids[:, prompt_length:].tolist() == recorded["new_ids"]
    attention = torch.tensor([run.largest for run in runs])
    if lora.base.family == "mpt":  # without a KV cache each step attended anew for the whole text
        attention = attention.cummax(dim=0).values
    expected = torch.tensor(recorded["xattn_output_absmax_per_step"])
    assert_recorded(f"{lora.name} attention per step", attention, expected, **FLOATS)


def test_logits_of_the_steps_at_which_2023_still_had_its_images_equal_the_recorded_ones(lora):
    """With a KV cache that was the first step; MPT's generation had no cache, and kept its images throughout."""
    attention = lora.json("generate")["upstream_as_is.greedy"]["xattn_output_absmax_per_step"]
    kept = len([largest for largest in attention if largest > 0])
    assert kept == {"opt": 1, "mpt": len(attention)}[lora.base.family]
    output = lora.generate("greedy", output_logits=True, return_dict_in_generate=True)
    ours = torch.stack(output.logits[:kept], dim=1)
    expected = lora.outputs["upstream_as_is.greedy_step_logits"][:, :kept]
    assert_recorded(f"{lora.name} logits per step", ours, expected, **FLOATS)


def test_what_we_save_of_a_lora_model_is_what_2023_saved_under_the_same_names(lora):
    recorded = {key.removeprefix("module."): tensor for key, tensor in lora.checkpoint.items()}
    ours = state_to_save(lora.model)
    assert ours.keys() - recorded.keys() == ADDED[lora.base.family]
    assert recorded.keys() - ours.keys() == NOT_SAVED[lora.base.family]
    for key in ours.keys() & recorded.keys():
        assert torch.equal(ours[key], recorded[key]), key


def test_a_2023_lora_checkpoint_loads_under_a_tuning_config_written_anew(lora, tmp_path):
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps(lora.json("tuning_config")))
    assert prepare_model_for_tuning(lora.base.fresh(), path) == lora.trained_names
