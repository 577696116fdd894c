"""The recipe of three stages, chained by the training command: each changes what its config says, to the bit."""

from pathlib import Path

import pytest
import torch
from tiny import FLOATS, random_images
from torch import Tensor
from toy import TUNING_CONFIGS, scalars, train, weights, write_json_file

from open_flamingo import Flamingo, load
from open_flamingo.instruction_tuning import export
from open_flamingo.instruction_tuning.checkpoint import read_checkpoint
from open_flamingo.src.weights import plain_name

STAGES = ["polite-1-lora", "polite-2-resampler+xattn", "polite-3-lora"]
OPENED = {
    "lora": False,
    "unfrozen": ["perceiver", "gated_cross_attn_layer"],
    "learning_rates": {"attn_gate": 0.2, "ff_gate": 0.02},
}
"""Trains blocks of open gates, from which the stages start."""
EVERY_PART = {
    "lora": True,
    "from_pretrained": False,
    "lora_target_modules": ["lm:q_proj", "xattn:to_kv", "perceiver:to_q", "perceiver:1.3"],
    "lora_r": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "unfrozen": ["**.attn_gate"],
    "learning_rates": {"**.attn_gate": 0.1, "lora": 0.05},
}


@pytest.fixture(scope="module")
def flags(toy_flags) -> list[str]:
    """The flags of runs of two whole steps."""
    return [*toy_flags, "--freeze_lm_embeddings", "--warmup_steps=0"]


@pytest.fixture(scope="module")
def base(flags, runs) -> Path:
    """The checkpoint below the stages."""
    tuning = write_json_file(runs / "opened.json", OPENED)
    return train(flags, run_name=runs / "opened", tuning_config=tuning) / "checkpoint_0.pt"


@pytest.fixture(scope="module")
def stages(flags, base, runs) -> list[Path]:
    """The base and the checkpoint of each stage, which was resumed from the one before."""
    paths = [base]
    for stage in STAGES:
        tuning = TUNING_CONFIGS / f"{stage}.json"
        run = train(flags, run_name=runs / stage, tuning_config=tuning, resume_from_checkpoint=paths[-1])
        paths.append(run / "checkpoint_0.pt")
    return paths


@pytest.fixture(scope="module")
def states(stages) -> list[dict[str, Tensor]]:
    """All tensors of the base and of each stage, by plain name."""
    return [{plain_name(name): tensor for name, tensor in load(str(path))[0].state_dict().items()} for path in stages]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of tensors that differ, or are new."""
    return {name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)}


def adapters(state: dict[str, Tensor]) -> set[str]:
    return {name for name in state if ".lora_" in name}


@torch.no_grad()
def logits(model: Flamingo) -> Tensor:
    ids = torch.tensor([[5, model.media_token_id, 20, 30, model.media_token_id, 40, 50]])
    return model(random_images(1, 2), ids).logits


def test_stage_1_adds_adapters_to_the_language_model_and_changes_nothing_else(states):
    base, first, _, _ = states
    assert changed(base, first) == adapters(first)
    assert len(adapters(first)) == 4 * 7 * 2
    assert not any("gated_cross_attn_layer" in name or "perceiver" in name for name in adapters(first))
    assert all(first[name].abs().sum() > 0 for name in adapters(first))


def test_stage_2_trains_resampler_and_cross_attention_without_its_feed_forward(states):
    _, first, second, _ = states
    attention = ".gated_cross_attn_layer.attn"
    assert changed(first, second) == {n for n in second if n.startswith("perceiver.") or attention in n}
    assert adapters(first) == adapters(second)


def test_stage_3_trains_the_adapters_of_stage_1_at_a_tenth_of_the_rate(states, runs):
    _, first, second, third = states
    assert changed(second, third) == adapters(third) == adapters(first)
    assert scalars(runs / STAGES[2], "train/lr")[-1] == pytest.approx(1e-5)
    # Adam's steps are at most about the rate long
    assert max((third[name] - first[name]).abs().max() for name in adapters(third)) < 5e-5


def test_the_checkpoint_of_a_stage_holds_what_trained_and_names_the_files_below(stages):
    assert not any(".lora_" in name for name in weights(stages[2].parent))
    assert not any("perceiver." in name for name in weights(stages[3].parent))
    for i, path in enumerate(stages):
        assert read_checkpoint(path)["base_checkpoints"] == [str(below) for below in stages[:i]]


def test_a_stage_can_be_continued(flags, stages, runs):
    tuning = TUNING_CONFIGS / f"{STAGES[1]}.json"
    run = train(
        [*flags, "--continue_training"],
        run_name=runs / "continued",
        tuning_config=tuning,
        resume_from_checkpoint=stages[2],
        num_epochs=2,
    )
    before, after = (load(str(path))[0].state_dict() for path in (stages[2], run / "checkpoint_1.pt"))
    assert adapters(after) == adapters(before)
    assert not adapters(after) & changed(before, after)


def test_the_last_stage_exports_to_the_same_logits(stages, tmp_path):
    export.main([f"--checkpoint_paths={stages[3]}", f"--output_dir={tmp_path / 'out'}"])
    torch.testing.assert_close(logits(load(str(tmp_path / "out"))[0]), logits(load(str(stages[3]))[0]), **FLOATS)


def test_adapters_of_every_part_train_load_continue_and_export(flags, base, tmp_path):
    flags = [*flags, f"--tuning_config={write_json_file(tmp_path / 'tuning.json', EVERY_PART)}"]
    path = train(flags, run_name=tmp_path / "run", resume_from_checkpoint=base) / "checkpoint_0.pt"
    trained = load(str(path))[0]
    before = {plain_name(name): tensor for name, tensor in load(str(base))[0].state_dict().items()}
    state = {plain_name(name): tensor for name, tensor in trained.state_dict().items()}
    assert changed(before, state) == adapters(state) | {name for name in state if name.endswith("attn_gate")}
    assert {"perceiver.layers.0.0.to_q.lora_A.weight", "perceiver.layers.5.1.3.lora_B.weight"} < adapters(state)
    export.main([f"--checkpoint_paths={path}", f"--output_dir={tmp_path / 'out'}"])
    merged = load(str(tmp_path / "out"))[0]
    assert not adapters(merged.state_dict())
    torch.testing.assert_close(logits(merged), logits(trained), **FLOATS)
    whole = train(flags, run_name=tmp_path / "whole", resume_from_checkpoint=base, num_epochs=2)
    parts = train(
        [*flags, "--continue_training"], run_name=tmp_path / "parts", resume_from_checkpoint=path, num_epochs=2
    )
    ends = [weights(run, 1) for run in (whole, parts)]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
