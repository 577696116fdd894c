"""`--dry_run`: what it tells is what training takes, it lists all mistakes at once, and it writes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import TUNING, TUNING_CONFIGS, as_flags, write_json_file

from open_flamingo.instruction_tuning.build import build_model
from open_flamingo.instruction_tuning.config import ModelConfig, OptimConfig
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.memory import estimate, largest_batch, measure
from open_flamingo.instruction_tuning.plan import META, counts_by_part, model_on_meta, tune
from open_flamingo.instruction_tuning.train import main
from open_flamingo.instruction_tuning.trainer import Trainer, make_trainer, train_step
from open_flamingo.instruction_tuning.tuning import parse_tuning_config, prepare_model_for_tuning

ALONE = Ranks(0, 1, torch.device("cpu"))
IMAGE = (3, 32, 32)
WAYS = {
    "fp32": {"precision": "fp32"},
    "fp32, checkpointing": {"precision": "fp32", "gradient_checkpointing": True},
    "bf16": {"precision": "bf16"},
    "bf16, checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
    "amp_bf16": {"precision": "amp_bf16"},
    "fp16": {"precision": "fp16"},
}
TUNINGS = {
    "lora": TUNING,
    "resampler": {"lora": False, "unfrozen": ["perceiver"]},
    "whole": {"lora": False, "unfrozen": ["lang_encoder"]},
}


@pytest.fixture(scope="module")
def model_config(tiny_vision: Path, tiny_lm: Path) -> ModelConfig:
    return ModelConfig(
        vision_encoder_path=str(tiny_vision),
        vision_encoder_pretrained="none",
        lm_path=str(tiny_lm),
        cross_attn_every_n_layers=2,
        resampler_depth=2,
    )


@pytest.fixture
def dry_flags(toy_flags: list[str], tmp_path: Path) -> list[str]:
    """The flags of a dry run in which nothing is wrong."""
    return [*toy_flags, "--dry_run", *as_flags(run_name=tmp_path / "run", warmup_steps=0)]


def optim_config(**changes: Any) -> OptimConfig:
    return OptimConfig(tuning_config=Path("unused"), **changes)


def trainer_of(config: ModelConfig, optim: OptimConfig, tuning: dict[str, Any] = TUNING, *, real: bool) -> Trainer:
    """A trainer of the tiny model, with weights or on the meta device."""
    parsed = parse_tuning_config(tuning)
    if real:
        model, _, _ = build_model(config, optim.precision)
        prepare_model_for_tuning(model, parsed, freeze_lm_embeddings=False)
        return make_trainer(model, optim, {}, 1, ALONE)
    model, _, _ = model_on_meta(config, optim.precision)
    tune(model, parsed, config)
    return make_trainer(model, optim, {}, 1, Ranks(0, 1, META))


def batch_for(trainer: Trainer, *, real: bool, batch_size: int = 3) -> Any:
    """The largest batch, with pictures or without values."""
    batch = largest_batch(trainer.model, batch_size=batch_size, max_length=96, max_img=2, image_shape=IMAGE)
    if real:
        batch.images = torch.randn(batch.images.shape)
    return batch


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_model_on_meta_has_the_parameters_of_the_real_one_part_by_part(model_config, tuning):
    real, planned = (
        trainer_of(model_config, optim_config(), TUNINGS[tuning], real=real).model for real in (True, False)
    )
    counts = counts_by_part(planned)
    assert counts == counts_by_part(real)
    assert sum(map(sum, counts.values())) == sum(p.numel() for p in real.parameters())
    assert all(tensor.is_meta for tensor in (*planned.parameters(), *planned.buffers()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_gradients_and_optimizer_state_take_the_bytes_they_are_planned_to(model_config, precision):
    optim = optim_config(precision=precision)
    real, planned = (trainer_of(model_config, optim, real=real) for real in (True, False))
    memory = estimate(planned, batch_for(planned, real=False), ALONE)
    model = real.model
    assert memory.weights == size([*model.parameters(), *model.buffers()])
    model.gated_cross_attn_layers[0].attn_gate.data.fill_(0.5)
    train_step(real, [batch_for(real, real=True)])
    state = [value for entry in real.optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    assert memory.optimizer == size(state)
    assert memory.gradients == size(p for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("way", "tuning"), [*((way, "lora") for way in WAYS), ("fp32", "resampler"), ("fp32", "whole")]
)
def test_activations_without_values_take_what_the_real_ones_take(model_config, way, tuning):
    optim = optim_config(**WAYS[way])
    real, planned = (trainer_of(model_config, optim, TUNINGS[tuning], real=real) for real in (True, False))
    batch = batch_for(real, real=True)
    measure(real, batch)
    real.optimizer.zero_grad()
    meter, inputs = measure(real, batch), size(v for v in vars(batch).values() if isinstance(v, Tensor))
    memory = estimate(planned, batch_for(planned, real=False), ALONE)
    # statistics of LayerNorm are kept in fp32 with values, in half precision without
    close = 0 if optim.precision in ("fp32", "amp_bf16") else 0.005
    assert memory.activations == pytest.approx(meter.most_live + inputs, rel=close)
    assert memory.peak == pytest.approx(memory.weights + memory.optimizer + meter.most + inputs, rel=close)


def test_checkpointing_is_planned_to_save_memory(model_config):
    planned = [
        trainer_of(model_config, optim_config(gradient_checkpointing=saves), real=False) for saves in (True, False)
    ]
    less, more = (estimate(trainer, batch_for(trainer, real=False), ALONE).activations for trainer in planned)
    assert less < more


def test_ranks_that_shard_divide_all_but_the_tower(model_config):
    whole, sharded = (
        estimate(trainer, batch_for(trainer, real=False), Ranks(0, 4, ALONE.device), shards=shards)
        for shards in (1, 4)
        for trainer in [trainer_of(model_config, optim_config(), real=False)]
    )
    model = trainer_of(model_config, optim_config(), real=True).model
    tower = size([*model.vision_encoder.parameters(), *model.buffers()])
    # a parameter whose rows four ranks do not share evenly is padded
    assert 4 * (sharded.weights - tower) == pytest.approx(whole.weights - tower, rel=0.01)
    assert 4 * sharded.gradients == pytest.approx(whole.gradients, rel=0.01)
    assert sharded.gathered > 0 == whole.gathered
    assert sharded.activations == whole.activations


def test_a_dry_run_prints_the_plan_and_writes_nothing(dry_flags, tmp_path, capsys):
    assert main(dry_flags) == 0
    out = capsys.readouterr().out
    for line in ("vision encoder", "gated cross-attention", "gradients", "most at one time", "optimizer steps"):
        assert line in out
    assert "wrong with this command" not in out
    assert list(tmp_path.iterdir()) == []


def test_no_weights_are_needed(dry_flags, tiny_lm, tower, tmp_path, capsys):
    for source, name in ((tiny_lm, "lm"), (tower, "tower")):
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    assert main([*dry_flags, *as_flags(lm_path=tmp_path / "lm", vision_encoder_path=tmp_path / "tower")]) == 0
    assert "holds no weights yet" in capsys.readouterr().out


def test_all_that_is_wrong_is_listed_at_once(dry_flags, tmp_path, pictures, capsys):
    (tmp_path / "run").mkdir()
    torch.save({}, tmp_path / "run" / "checkpoint_0.pt")
    records = [{"input": "<img_path>nowhere.png<img_path>What?", "output": "Nothing."}]
    changes = {
        "tuning_config": write_json_file(tmp_path / "tuning.json", {"lora": False, "unfrozen": ["nothing"]}),
        "instruction_data": write_json_file(tmp_path / "data.json", records),
        "val_data": tmp_path / "missing.json",
        "max_length": 4096,
    }
    assert main([*dry_flags, *as_flags(**changes)]) == 1
    wrong = capsys.readouterr().out.partition("wrong with this command:")[2]
    expected = (
        "already holds",
        "'nothing'",
        "nowhere.png does not exist",
        "missing.json",
        "more than the 512 positions",
    )
    assert [text for text in expected if text not in wrong] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "does not fill one batch"),
        ({"resume_from_checkpoint": "nowhere.pt"}, "nowhere.pt does not exist"),
        ({"lm_path": "nowhere/lm"}, "nowhere/lm"),
        ({"vision_encoder_path": "ViT-B-32", "vision_encoder_pretrained": "never"}, "neither a file nor a tag"),
    ],
)
def test_one_mistake_is_one_sentence_and_exit_code_1(dry_flags, changes, message, capsys):
    assert main([*dry_flags, *as_flags(**changes)]) == 1
    assert message in capsys.readouterr().out.partition("wrong with this command:")[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"warmup_steps": 5000}, "never reaches"), ({"continue_training": True}, "the run starts anew")],
)
def test_what_is_allowed_but_may_not_be_meant_is_a_note(dry_flags, changes, message, capsys):
    assert main([*dry_flags, *as_flags(**changes)]) == 0
    assert message in capsys.readouterr().out.partition("notes:")[2]


def test_a_checkpoint_of_this_model_fits_and_one_of_another_does_not(dry_flags, short_run, tmp_path, capsys):
    checkpoint = short_run / "checkpoint_1.pt"
    assert main([*dry_flags, *as_flags(resume_from_checkpoint=checkpoint)]) == 0
    assert main([*dry_flags, *as_flags(resume_from_checkpoint=checkpoint, resampler_latents=8)]) == 1
    assert "has shape (64, 64), the model's is (8, 64)" in capsys.readouterr().out


def test_tuning_configs_that_are_shipped_can_be_planned(dry_flags, capsys):
    assert main([*dry_flags, *as_flags(tuning_config=TUNING_CONFIGS / "perceiver.json", fsdp=True)]) == 0
    assert json.loads((TUNING_CONFIGS / "perceiver.json").read_text())["lora"] is False
