"""Checkpoints: what is saved is enough for equal logits, names of every origin are understood, bad files are refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import EXACT, PROMPTS, encode, random_images
from torch import Tensor, nn
from toy import GOLDENS, TUNING_CONFIGS, golden_tokenizer

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import (
    load_checkpoints,
    read_checkpoint,
    save_checkpoint,
    state_to_save,
)
from open_flamingo.instruction_tuning.tuning import parse_tuning_config, prepare_model_for_tuning
from open_flamingo.src.weights import plain_name, saved_name

PLAIN = parse_tuning_config({"lora": False, "unfrozen": ["perceiver", "gated_cross_attn_layer"]})
LORA = parse_tuning_config(
    {
        "lora": True,
        "from_pretrained": False,
        "lora_target_modules": ["q_proj", "Wqkv", "to_q"],
        "lora_r": 4,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "unfrozen": ["perceiver", "gated_cross_attn_layer"],
    }
)
LMS = {"untied": GOLDENS / "llama" / "lm", "tied": GOLDENS / "mpt" / "lm"}
LATENTS = "perceiver.latents"


@pytest.fixture(params=LMS)
def build(build_tiny, request) -> Callable[..., Flamingo]:
    """Builds models that differ by their seed in all but the frozen parts, with a tied or an untied output head."""
    tower = build_tiny(seed=0)[0].vision_encoder.state_dict()

    def build(seed: int, tuning: object = PLAIN) -> Flamingo:
        model, _, _ = build_tiny(lm=LMS[request.param], seed=seed)
        model.vision_encoder.load_state_dict(tower)
        prepare_model_for_tuning(model, tuning)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return build


@pytest.fixture
def model(build_tiny) -> Flamingo:
    """A model of which only the resampler trains."""
    model, _, _ = build_tiny()
    prepare_model_for_tuning(model, TUNING_CONFIGS / "perceiver.json")
    return model


def logits(model: Flamingo) -> Tensor:
    """Logits of PROMPTS with random images."""
    with torch.no_grad():
        return model(random_images(len(PROMPTS), 3), **encode(golden_tokenizer(), *PROMPTS)).logits


def save_state(path: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint of given names and tensors."""
    torch.save({"model_state_dict": state}, path)
    return path


def saved(path: Path, model: Flamingo) -> str:
    """The path of a new checkpoint of the model."""
    save_checkpoint(path, state_to_save(model))
    return str(path)


def without_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a LoRA model's state dict that a model without LoRA has too, by the name they have there."""
    return {plain_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}


@pytest.mark.parametrize("tuning", [PLAIN, LORA], ids=["plain", "lora"])
def test_a_checkpoint_gives_a_fresh_model_the_same_logits_to_the_bit(build, tmp_path, tuning):
    trained, fresh = build(1, tuning), build(2, tuning)
    expected = logits(trained)
    assert not torch.equal(logits(fresh), expected)
    load_checkpoints(fresh, saved(tmp_path / "checkpoint_0.pt", trained))
    torch.testing.assert_close(logits(fresh), expected, **EXACT)


def test_weights_saved_before_lora_load_after_lora(build, tmp_path):
    trained, fresh = build(1, PLAIN), build(2, LORA)
    load_checkpoints(fresh, saved(tmp_path / "before.pt", trained))
    loaded, expected = without_lora(dict(fresh.named_parameters())), state_to_save(trained)
    torch.testing.assert_close({name: loaded[name].detach() for name in expected}, expected, **EXACT)


def test_weights_saved_with_lora_bring_it_to_a_model_without(build, tmp_path):
    trained, fresh = build(1, LORA), build(2, PLAIN)
    load_checkpoints(fresh, saved(tmp_path / "after.pt", trained))
    torch.testing.assert_close(logits(fresh), logits(trained), **EXACT)


def test_several_checkpoints_are_loaded_one_over_the_other(model, tmp_path):
    first = save_state(tmp_path / "a.pt", {LATENTS: torch.ones(64, 64), "perceiver.norm.bias": torch.ones(64)})
    second = save_state(tmp_path / "b.pt", {LATENTS: torch.zeros(64, 64)})
    load_checkpoints(model, f"{first}, {second}", strict=False)
    assert (model.perceiver.latents == 0).all()
    assert (model.perceiver.norm.bias == 1).all()


@pytest.mark.parametrize("tuning", [PLAIN, LORA], ids=["plain", "lora"])
def test_what_trains_and_the_embeddings_are_saved_once_each_under_released_names(build, tuning):
    model = build(1, tuning)
    state = state_to_save(model)
    trained = {saved_name(name) for name, p in model.named_parameters() if p.requires_grad}
    embeddings = {name for name in state if name.endswith((".wte.weight", ".embed_tokens.weight", ".lm_head.weight"))}
    tied = model.lang_encoder.config.tie_word_embeddings
    assert set(state) == trained | embeddings
    assert len(embeddings) == (1 if tied else 2)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert not any("base_layer" in name for name in state)


def test_saved_names_are_those_of_the_released_checkpoints(build_tiny):
    model, _, _ = build_tiny(lm=LMS["tied"])
    prepare_model_for_tuning(model, TUNING_CONFIGS / "lora[lm+xqttn]+perceiver.json")
    assert {
        "perceiver.layers.0.0.to_q.weight",
        "lang_encoder.base_model.model.transformer.wte.weight",
        "lang_encoder.base_model.model.transformer.blocks.0.decoder_layer.attn.Wqkv.lora_A.default.weight",
        "lang_encoder.base_model.model.transformer.blocks.3.gated_cross_attn_layer.attn.to_kv.lora_B.default.weight",
    } <= set(state_to_save(model))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_bare_state_dict_is_accepted_in_either_format(model, tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)({LATENTS: torch.ones(64, 64)}, path)
    load_checkpoints(model, str(path), strict=False)
    assert (model.perceiver.latents == 1).all()


def refused(load: Callable[[], object], path: Path) -> str:
    """The refusal of a file: one sentence that names it."""
    with pytest.raises(ValueError, match="checkpoint ") as refusal:
        load()
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_checkpoint_that_matches_nothing_is_refused(model, tmp_path):
    path = save_state(tmp_path / "other.pt", {"encoder.weight": torch.ones(2)})
    message = refused(lambda: load_checkpoints(model, str(path)), path)
    assert "matches no parameter" in message
    assert "encoder.weight" in message


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(model, tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)({LATENTS: torch.ones(64, 64)}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(lambda: read_checkpoint(path), path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"{}", b"\x80"]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"other.{suffix}"
    path.write_bytes(content)
    refused(lambda: read_checkpoint(path), path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.pt", tmp_path):
        refused(lambda path=path: read_checkpoint(path), path)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)]])
def test_a_file_that_holds_no_state_dict_is_refused(model, tmp_path, content):
    path = tmp_path / "tensor.pt"
    torch.save(content, path)
    refused(lambda: load_checkpoints(model, str(path)), path)


class MakesFolder:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_never_run(tmp_path, write):
    path, folder = tmp_path / "code.pt", tmp_path / "made"
    write({"model_state_dict": {LATENTS: MakesFolder(folder)}}, path)
    refused(lambda: read_checkpoint(path), path)
    assert not folder.exists()


def test_a_write_that_fails_keeps_the_old_checkpoint_and_leaves_no_partial_file(model, tmp_path):
    path = tmp_path / "run" / "checkpoint_0.pt"
    save_checkpoint(path, state_to_save(model), epoch=0)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, state_to_save(model), epoch=lambda: 1)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint_0.pt"]
    assert path.read_bytes() == before


def test_what_is_saved_beside_the_weights_is_read_back(model, tmp_path):
    save_checkpoint(tmp_path / "a.pt", state_to_save(model), epoch=3, config={"template": "guanaco"})
    content = read_checkpoint(tmp_path / "a.pt")
    assert (content["epoch"], content["config"]) == (3, {"template": "guanaco"})
