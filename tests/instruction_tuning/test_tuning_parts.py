"""Tuning by part: patterns and rates mean what they say; adapters of each part are made, saved, loaded and merged."""

from dataclasses import asdict

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import EXACT, FLOATS, PROMPTS, encode, random_images
from torch import nn

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints, state_to_save
from open_flamingo.instruction_tuning.tuning import (
    TuningConfig,
    learning_rate_of,
    matches,
    prepare_model_for_tuning,
)
from open_flamingo.src.lora import merge_lora
from open_flamingo.src.weights import plain_name

ATTENTION = "lang_encoder.model.layers.3.gated_cross_attn_layer.attn.to_q.weight"
GATE = "lang_encoder.model.layers.3.gated_cross_attn_layer.attn_gate"
PROJECTION = "lang_encoder.base_model.model.model.layers.3.decoder_layer.self_attn.q_proj.base_layer.weight"
ADAPTER = "lang_encoder.base_model.model.model.layers.3.decoder_layer.self_attn.q_proj.lora_A.default.weight"
RESAMPLER = "perceiver.layers.10.0.to_q.base_layer.weight"
ALL = [ATTENTION, GATE, PROJECTION, ADAPTER, RESAMPLER]
TARGETS = {
    "lm": {f"lang_encoder.model.layers.{i}.self_attn.q_proj" for i in range(4)},
    "xattn": {f"lang_encoder.model.layers.{i}.gated_cross_attn_layer.attn.to_q" for i in (1, 3)},
    "perceiver": {f"perceiver.layers.{i}.0.to_q" for i in range(2)},
}
"""By part, the modules of the tiny model that end in `q_proj` or `to_q`."""
BY_PART = ["lm:q_proj", "xattn:to_q", "perceiver:to_q"]


@pytest.fixture
def build(build_tiny):
    """Builds the tiny model with a resampler of two layers, always with the same weights."""

    def build() -> Flamingo:
        return build_tiny(every=2, resampler_depth=2)[0]

    return build


@pytest.fixture
def logits(build_tiny):
    """Computes the logits of PROMPTS with random images."""
    tokenizer = build_tiny()[2]

    @torch.no_grad()
    def logits(model: Flamingo) -> torch.Tensor:
        return model.eval()(random_images(len(PROMPTS), 3), **encode(tokenizer, *PROMPTS)).logits

    return logits


def lora(*targets: str, alpha: int = 6, unfrozen: tuple[str, ...] = (), **rates: float) -> TuningConfig:
    """A tuning config of rank 4."""
    modules = list(targets)
    return TuningConfig(
        lora=True,
        lora_target_modules=modules,
        lora_r=4,
        lora_alpha=alpha,
        unfrozen=list(unfrozen),
        learning_rates=rates,
    )


def tuned(model: Flamingo, config: TuningConfig, seed: int = 1) -> Flamingo:
    """`model` under a tuning config, with random values in the adapters that train."""
    trained = set(prepare_model_for_tuning(model, config))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in trained and "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(path, model: Flamingo, config: TuningConfig) -> str:
    """A checkpoint of what trains in `model`, as training writes it."""
    torch.save({"model_state_dict": state_to_save(model), "config": {"tuning": asdict(config)}}, path)
    return str(path)


def scales(model: Flamingo) -> dict[str, float]:
    """The scale of each adapter, by the plain name of its module."""
    layers = {plain_name(name): m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {name: layer.scaling["default"] for name, layer in layers.items()}


def state_names(model: Flamingo) -> set[str]:
    return set(model.state_dict())


def training(model: Flamingo) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("**", ALL),
        ("lang_encoder.*", [ATTENTION, GATE, PROJECTION, ADAPTER]),
        ("*.layers.3", []),
        ("**.layers.3.**.attn", [ATTENTION]),
        ("**.gated_cross_attn_layer.attn*", [ATTENTION, GATE]),
        ("**.gated_cross_attn_layer.*", [ATTENTION, GATE]),
        ("**.layers.3.self_attn.q_proj", [PROJECTION, ADAPTER]),
        ("**.q_proj.weight", [PROJECTION]),
        ("lang_encoder.base_model.model.**.decoder_layer.**.lora_A.default.*", [ADAPTER]),
        ("perceiver.layers.1*.0", [RESAMPLER]),
        ("perceiver.layers.*.1", []),
        ("perceiver.layers.*.to_q", []),
        ("layers.3.*", []),
        ("layers.3.", [ATTENTION, GATE, PROJECTION, ADAPTER]),
        ("decoder_layer", [PROJECTION, ADAPTER]),
        ("to_q.base_layer", [RESAMPLER]),
        ("attn", [ATTENTION, GATE, PROJECTION, ADAPTER]),
    ],
)
def test_a_pattern_matches_whole_parts_and_a_fragment_the_name_as_it_is(entry, meant):
    assert [name for name in ALL if matches(entry, name)] == meant


def test_a_pattern_unfreezes_the_same_with_adapters_and_without(build):
    entries = ("**.layers.3.gated_cross_attn_layer.attn", "perceiver.layers.*.0", "**.layers.0.self_attn.q_proj")
    bare, adapted = build(), build()
    alone = prepare_model_for_tuning(bare, TuningConfig(lora=False, unfrozen=list(entries)))
    with_lora = prepare_model_for_tuning(adapted, lora(*BY_PART, unfrozen=entries))
    weights = {plain_name(name) for name in with_lora if ".lora_" not in name}
    assert {plain_name(name) for name in alone} == weights
    assert len(alone) == 5 + 2 * 7 + 1


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"lm": 1.0, "xattn": 2.0, "perceiver": 3.0}, [2.0, 2.0, 1.0, 1.0, 3.0]),
        ({"lora": 4.0, "lm": 1.0}, [0.5, 0.5, 1.0, 4.0, 0.5]),
        ({"lm": 1.0, "lora": 4.0}, [0.5, 0.5, 1.0, 1.0, 0.5]),
        ({"**.attn_gate": 5.0, "xattn": 2.0}, [2.0, 5.0, 0.5, 0.5, 0.5]),
        ({"attn_gate": 5.0, "perceiver.layers.10.*": 6.0}, [0.5, 5.0, 0.5, 0.5, 6.0]),
    ],
)
def test_rates_are_by_part_pattern_or_fragment_and_the_first_match_counts(rates, expected):
    assert [learning_rate_of(name, 0.5, rates) for name in ALL] == expected


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (["q_proj", "to_q"], ["lm", "xattn"]),
        (["lm:q_proj"], ["lm"]),
        (["xattn:to_q"], ["xattn"]),
        (["perceiver:to_q"], ["perceiver"]),
        (["q_proj", "perceiver:to_q"], ["lm", "perceiver"]),
        (BY_PART, ["lm", "xattn", "perceiver"]),
    ],
)
def test_targets_mean_the_part_they_name(build, targets, parts):
    model = build()
    trained = prepare_model_for_tuning(model, lora(*targets))
    modules = {name for part in parts for name in TARGETS[part]}
    assert {plain_name(name) for name in trained} == {f"{name}.lora_{side}.weight" for name in modules for side in "AB"}
    assert scales(model) == dict.fromkeys(modules, 1.5)


def test_a_target_may_be_a_single_layer_of_the_resamplers_feed_forward(build):
    model = build()
    prepare_model_for_tuning(model, lora("perceiver:1.1"))
    assert set(scales(model)) == {"perceiver.layers.0.1.1", "perceiver.layers.1.1.1"}


def test_adapters_of_the_resampler_are_inside_it_and_change_nothing_at_first(build, logits):
    model = build()
    before = logits(model)
    prepare_model_for_tuning(model, lora("perceiver:to_q"))
    names = {name for name, _ in model.named_parameters() if name.startswith("perceiver.layers.0.0.to_q.")}
    assert names == {
        "perceiver.layers.0.0.to_q.base_layer.weight",
        "perceiver.layers.0.0.to_q.lora_A.default.weight",
        "perceiver.layers.0.0.to_q.lora_B.default.weight",
    }
    assert "perceiver.layers.0.0.to_q.lora_A.default.weight" in state_to_save(model)
    assert "perceiver.layers.0.0.to_q.weight" in state_to_save(model, [model.perceiver])
    torch.testing.assert_close(logits(model), before, **EXACT)


@pytest.mark.parametrize("targets", [["lm:q_proj"], ["xattn:to_q"], ["perceiver:to_q"], BY_PART])
def test_a_checkpoint_loads_after_tuning_before_it_and_without_it(build, logits, tmp_path, targets):
    config = lora(*targets)
    trained = tuned(build(), config)
    path, expected = saved(tmp_path / "a.pt", trained, config), logits(trained)
    after, before, without = build(), build(), build()
    prepare_model_for_tuning(after, config)
    load_checkpoints(after, path, strict=False)
    load_checkpoints(before, path, strict=False)
    prepare_model_for_tuning(before, config)
    without.requires_grad_(False)
    load_checkpoints(without, path, strict=False)
    for model in (after, before, without):
        torch.testing.assert_close(logits(model), expected, **EXACT)
        assert state_names(model) == state_names(trained)
    assert training(before) == training(after) == training(trained)
    assert training(without) == set()


def test_merged_adapters_give_the_same_logits(build, logits):
    model = tuned(build(), lora(*BY_PART))
    expected = logits(model)
    merge_lora(model)
    assert state_names(model) == state_names(build())
    torch.testing.assert_close(logits(model), expected, **FLOATS)
    assert (logits(build()) - expected).abs().max() > 0.01


@pytest.mark.parametrize(("first", "second"), [("lm:q_proj", "perceiver:to_q"), ("lm:q_proj", "xattn:to_q")])
def test_adapters_of_a_part_that_does_not_train_are_kept_frozen_with_their_own_scale(
    build, logits, tmp_path, first, second
):
    one, two = lora(first), lora(second, alpha=2)
    below = saved(tmp_path / "one.pt", tuned(build(), one), one)
    model = build()
    prepare_model_for_tuning(model, two)
    load_checkpoints(model, below, strict=False)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    above, expected = saved(tmp_path / "two.pt", model, two), logits(model)
    held = state_to_save(model)
    assert {plain_name(name) for name in held if ".lora_" in name} == {plain_name(name) for name in training(model)}
    after, without = build(), build()
    prepare_model_for_tuning(after, two)
    for fresh in (after, without):
        load_checkpoints(fresh, f"{below},{above}", strict=False)
        torch.testing.assert_close(logits(fresh), expected, **EXACT)
        assert set(scales(fresh).values()) == {1.5, 0.5}


def test_adapters_loaded_before_a_config_of_another_part_are_kept_frozen(build, logits, tmp_path):
    one = lora("lm:q_proj")
    trained = tuned(build(), one)
    model = build()
    load_checkpoints(model, saved(tmp_path / "one.pt", trained, one), strict=False)
    names = prepare_model_for_tuning(model, lora("xattn:to_q", "perceiver:to_q", alpha=2))
    assert {plain_name(name).partition(".lora_")[0] for name in names} == TARGETS["xattn"] | TARGETS["perceiver"]
    assert scales(model) == {n: 1.5 if n in TARGETS["lm"] else 0.5 for names in TARGETS.values() for n in names}
    torch.testing.assert_close(logits(model), logits(trained), **EXACT)


def test_half_an_adapter_of_the_resampler_is_refused(build, tmp_path):
    config = lora("perceiver:to_q")
    trained = tuned(build(), config)
    state = state_to_save(trained, [trained.perceiver, *trained.gated_cross_attn_layers])
    del state["perceiver.layers.1.0.to_q.lora_B.default.weight"]
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"no checkpoint holds perceiver\.layers\.1\.0\.to_q\.lora_B"):
        load_checkpoints(build(), str(tmp_path / "half.pt"))


def test_a_gradient_reaches_the_adapters_of_every_part(build, build_tiny):
    model = tuned(build(), lora(*BY_PART))
    batch = encode(build_tiny()[2], *PROMPTS)
    model(random_images(len(PROMPTS), 3), **batch, labels=batch["lang_x"]).loss.backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in training(model))
