"""A checkpoint knows the files it was fine-tuned from: alone it gives the model that was trained, or says what lacks."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from toy import TUNING_CONFIGS, train, weights, write_json_file

from open_flamingo import load
from open_flamingo.instruction_tuning.build import Recipe, files_of
from open_flamingo.instruction_tuning.checkpoint import read_checkpoint
from open_flamingo.instruction_tuning.config import ModelConfig, TrainedConfig

RESAMPLER = {"lora": False, "unfrozen": ["perceiver"]}


@pytest.fixture(scope="module")
def base(toy_flags, runs):
    """A checkpoint with blocks that opened."""
    return train(toy_flags, run_name=runs / "base") / "checkpoint_0.pt"


@pytest.fixture(scope="module")
def tuned(toy_flags, base, runs):
    """The run of a checkpoint of the resampler alone, fine-tuned from `base`."""
    tuning = write_json_file(runs / "resampler.json", RESAMPLER)
    return train(toy_flags, run_name=runs / "tuned", tuning_config=tuning, resume_from_checkpoint=base, num_epochs=2)


def same(a, b) -> bool:
    """Whether two models have equal weights."""
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_a_checkpoint_alone_is_loaded_over_the_files_it_was_fine_tuned_from(base, tuned):
    path = tuned / "checkpoint_1.pt"
    assert read_checkpoint(path)["base_checkpoints"] == [str(base)]
    assert not any("gated" in name for name in weights(tuned, 1))
    assert same(load(str(path))[0], load(f"{base},{path}")[0])


def test_a_base_that_is_gone_is_named_with_what_to_do(base, tuned, tmp_path):
    moved = shutil.copy(base, tmp_path / "moved.pt")
    path = tuned / "checkpoint_0.pt"
    expected = load(str(path))[0]
    hidden = base.rename(base.with_suffix(".hidden"))
    try:
        with pytest.raises(ValueError, match=r"was fine-tuned from .*checkpoint_0\.pt, which is not there: list"):
            load(str(path))
        assert same(load(f"{moved},{path}")[0], expected)
    finally:
        hidden.rename(base)


def test_a_continued_run_needs_what_its_first_part_needed_and_no_more(toy_flags, base, tuned, tmp_path):
    flags = [*toy_flags, f"--tuning_config={tuned.parent / 'resampler.json'}", "--continue_training"]
    run = train(flags, run_name=tmp_path / "run", resume_from_checkpoint=tuned / "checkpoint_0.pt", num_epochs=2)
    assert read_checkpoint(run / "checkpoint_1.pt")["base_checkpoints"] == [str(base)]
    assert same(load(str(run / "checkpoint_1.pt"))[0], load(str(tuned / "checkpoint_1.pt"))[0])


def test_a_run_from_scratch_saves_its_frozen_random_parts(toy_flags, tmp_path):
    tuning = write_json_file(tmp_path / "resampler.json", RESAMPLER)
    run = train(toy_flags, run_name=tmp_path / "run", tuning_config=tuning)
    names = set(weights(run))
    assert sum("gated_cross_attn_layer" in name for name in names) == 2 * 11
    first = load(str(run / "checkpoint_0.pt"))[0]
    torch.manual_seed(99)
    assert same(first, load(str(run / "checkpoint_0.pt"))[0])


def test_quick_gelu_is_recorded_as_it_was_computed(toy_flags, tiny_vision, tmp_path):
    quick = json.loads(tiny_vision.read_text()) | {"quick_gelu": True}
    path = write_json_file(tmp_path / "tiny-quick-vit.json", quick)
    run = train(
        toy_flags,
        run_name=tmp_path / "run",
        vision_encoder_path=path,
        vision_encoder_pretrained="none",
        tuning_config=TUNING_CONFIGS / "perceiver.json",
    )
    assert read_checkpoint(run / "checkpoint_0.pt")["config"]["model"]["quick_gelu"] is True
    assert json.loads((run / "config.json").read_text())["quick_gelu"] is True


@pytest.mark.parametrize("tag", ["none", "openai"])
def test_paths_are_recorded_whole_and_names_and_tags_as_they_are_whatever_lies_here(tmp_path, monkeypatch, tag):
    for name in ("lm", "openai"):
        (tmp_path / name).mkdir()
    for name in ("tower.json", "none", "previous"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(
        vision_encoder_path="tower.json", vision_encoder_pretrained=tag, lm_path="lm", tokenizer_path="gpt2"
    )
    whole = {"vision_encoder_path": str(tmp_path / "tower.json"), "lm_path": str(tmp_path / "lm")}
    assert Recipe(config, None, "guanaco").to_json()["model"] == asdict(config) | whole


def test_the_files_of_a_model_are_those_that_its_checkpoint_names_and_those_that_are_named(base, tuned, tower, tiny_lm):
    checkpoint, tuning = tuned / "checkpoint_0.pt", tuned.parent / "resampler.json"
    named = TrainedConfig(checkpoint_paths=str(checkpoint), tuning_config=str(tuning))
    assert files_of(named) == {"checkpoint files": [base, checkpoint], "model files": [tower, tiny_lm, tuning]}
