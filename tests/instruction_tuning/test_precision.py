"""Precisions: frozen weights in half precision, trained ones in fp32, so that small updates do not vanish."""

import pytest
import torch
from tiny import EXACT, PROMPTS, encode, random_images
from torch import nn
from toy import TUNING_CONFIGS

from open_flamingo.instruction_tuning.config import OptimConfig
from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen, frozen_dtype
from open_flamingo.instruction_tuning.trainer import make_trainer, train_step
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning

CPU = torch.device("cpu")
HALF = [("bf16", torch.bfloat16), ("fp16", torch.float16)]
FULL = ["fp32", "amp_bf16", "amp_bfloat16"]
TINY_RATE = 1e-5
IMAGES = 6
"""Images of PROMPTS."""


def batch_of_prompts(tokenizer) -> Batch:
    """PROMPTS as a training batch; every token but the first is supervised."""
    text = encode(tokenizer, *PROMPTS)
    mask = text["attention_mask"]
    return Batch(random_images(1, IMAGES)[0], text["lang_x"], mask, mask.bool(), torch.zeros_like(mask))


@pytest.mark.parametrize(("precision", "dtype"), HALF)
def test_frozen_weights_are_halved_and_trained_ones_stay_fp32(build_tiny, precision, dtype):
    model, _, _ = build_tiny()
    trained = set(prepare_model_for_tuning(model, TUNING_CONFIGS / "from_scratch-llama.json"))
    cast_frozen(model, precision)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    norms = {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert dtypes == {name: torch.float32 if name in trained | norms else dtype for name in dtypes}
    assert frozen_dtype(precision) == dtype


@pytest.mark.parametrize("precision", FULL)
def test_other_precisions_store_everything_in_fp32(build_tiny, precision):
    model, _, _ = build_tiny()
    cast_frozen(model, precision)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert frozen_dtype(precision) == torch.float32


def test_batch_norm_stays_fp32():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)).requires_grad_(False)
    cast_frozen(model, "bf16")
    assert {p.dtype for p in model[1].parameters()} == {torch.float32}
    assert {p.dtype for layer in (model[0], model[2]) for p in layer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("amp_bf16", torch.bfloat16), ("bf16", torch.bfloat16)]
)
def test_autocast_does_the_arithmetic_in_the_precision(precision, dtype):
    with autocast(CPU, precision):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_a_bf16_step_moves_trained_weights_by_less_than_bf16_can_hold(build_tiny):
    model, _, tokenizer = build_tiny()
    prepare_model_for_tuning(model, TUNING_CONFIGS / "perceiver.json")
    optim = OptimConfig(tuning_config=TUNING_CONFIGS, learning_rate=TINY_RATE, warmup_steps=0, precision="bf16")
    trainer = make_trainer(model, optim, {}, total_steps=1, ranks=Ranks(0, 1, CPU))
    scale = model.perceiver.norm.weight
    before = scale.detach().clone()
    train_step(trainer, [batch_of_prompts(tokenizer)])
    moved = (scale.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, TINY_RATE), rtol=0.05, atol=0)
    torch.testing.assert_close(scale.detach().bfloat16(), before.bfloat16(), **EXACT)
