"""Tuning configs: the shipped ones train exactly what they say, and a key, target or fragment that is wrong is named."""

import json

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import EXACT, PROMPTS, encode, random_images
from torch import nn
from toy import GOLDENS, TUNING_CONFIGS, write_json_file

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import state_to_save
from open_flamingo.instruction_tuning.optim import make_optimizer
from open_flamingo.instruction_tuning.tuning import (
    TuningConfig,
    learning_rate_of,
    parse_tuning_config,
    prepare_model_for_tuning,
    read_tuning_config,
)

SHIPPED = sorted(TUNING_CONFIGS.glob("*.json"))
LMS = ["llama", "mpt"]
LORA = {
    "lora": True,
    "from_pretrained": False,
    "lora_target_modules": ["q_proj"],
    "lora_r": 4,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "unfrozen": ["perceiver"],
}
PLAIN = {"lora": False, "unfrozen": ["perceiver"]}
PATTERNS = {
    "**.gated_cross_attn_layer.attn": ".gated_cross_attn_layer.attn.",
    "**.gated_cross_attn_layer.attn_gate": ".gated_cross_attn_layer.attn_gate",
}
"""The patterns of the shipped configs, and fragments that mean the same parameters."""
IMAGES = 3
"""Slots of PROMPTS."""


def golden(lm: str):
    """The folder of a recorded language model."""
    return GOLDENS / lm / "lm"


def with_target(model: Flamingo, targets: list[str]) -> set[str]:
    """The names of the linear layers of the language model that end in a target."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("lang_encoder.")
        if any(name.endswith(f".{target}") for target in targets)
    }


def logits(model: Flamingo, tokenizer) -> torch.Tensor:
    """Logits of PROMPTS with random images."""
    with torch.no_grad():
        return model(random_images(len(PROMPTS), IMAGES), **encode(tokenizer, *PROMPTS)).logits


@pytest.mark.parametrize(
    ("config", "lm"),
    [(config, lm) for config in SHIPPED for lm in LMS if lm == "llama" or "llama" not in config.stem],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_shipped_config_trains_exactly_what_it_says(build_tiny, config, lm):
    raw = json.loads(config.read_text())
    model, _, _ = build_tiny(lm=golden(lm))
    wrapped = with_target(model, raw["lora_target_modules"]) if raw["lora"] else set()
    adapters = {f"{name}.lora_{side}.default.weight" for name in wrapped for side in "AB"}
    adapters = {name.replace("lang_encoder.", "lang_encoder.base_model.model.", 1) for name in adapters}
    trained = prepare_model_for_tuning(model, config)
    names = [name for name, _ in model.named_parameters()]
    fragments = [PATTERNS.get(entry, entry) for entry in raw["unfrozen"]]
    unfrozen = {name for name in names if any(fragment in name for fragment in fragments)}
    assert bool(wrapped) == raw["lora"]
    assert set(trained) == {name for name, p in model.named_parameters() if p.requires_grad} == adapters | unfrozen
    assert {name for name in names if ".lora_" in name} == adapters
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())


@pytest.mark.parametrize("config", [c for c in SHIPPED if json.loads(c.read_text())["lora"]], ids=lambda c: c.stem)
def test_a_shipped_config_gives_adapters_their_rank_and_scale(build_tiny, config):
    raw = json.loads(config.read_text())
    model, _, _ = build_tiny(lm=golden("llama"))
    prepare_model_for_tuning(model, config)
    ranks = {p.shape[0] for name, p in model.named_parameters() if "lora_A" in name}
    scales = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    assert ranks == {raw["lora_r"]}
    assert scales == {raw["lora_alpha"] / raw["lora_r"]}


@pytest.mark.parametrize("lm", LMS)
def test_new_adapters_leave_the_logits_as_they_are_to_the_bit(build_tiny, lm):
    model, _, tokenizer = build_tiny(lm=golden(lm))
    before = logits(model, tokenizer)
    prepare_model_for_tuning(model, TUNING_CONFIGS / "lora[lm+xqttn]+perceiver.json")
    torch.testing.assert_close(logits(model.eval(), tokenizer), before, **EXACT)


def test_without_lora_no_adapter_is_added(build_tiny):
    model, _, _ = build_tiny()
    before = [name for name, _ in model.named_parameters()]
    prepare_model_for_tuning(model, TUNING_CONFIGS / "perceiver.json")
    assert [name for name, _ in model.named_parameters()] == before


@pytest.mark.parametrize("lm", LMS)
def test_of_the_embeddings_only_the_rows_of_the_new_tokens_train(build_tiny, lm):
    model, _, tokenizer = build_tiny(lm=golden(lm))
    trained = prepare_model_for_tuning(model, parse_tuning_config(PLAIN), freeze_lm_embeddings=False)
    weight = model.lang_encoder.get_input_embeddings().weight
    before = weight.detach().clone()
    parameters = model.named_parameters()
    optimizer = make_optimizer(parameters, learning_rate=1e-2, weight_decay=0.1, learning_rates={})
    batch = encode(tokenizer, *(f"{prompt}<|endofchunk|>" for prompt in PROMPTS))
    for _ in range(2):
        model(random_images(len(PROMPTS), IMAGES), **batch, labels=batch["lang_x"]).loss.backward()
        optimizer.step()
    (saved,) = (
        tensor for name, tensor in state_to_save(model).items() if name.endswith(("wte.weight", "tokens.weight"))
    )
    changed = (saved != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted([model.eoc_token_id, model.media_token_id])
    assert torch.equal(weight, before)
    assert [name for name in trained if not name.startswith("perceiver.")] == ["trained_rows.weight"]


def test_frozen_embeddings_do_not_train(build_tiny):
    model, _, _ = build_tiny()
    prepare_model_for_tuning(model, parse_tuning_config(PLAIN), freeze_lm_embeddings=True)
    assert not model.lang_encoder.get_input_embeddings().weight.requires_grad


def test_a_fragment_never_unfreezes_the_vision_tower(build_tiny):
    model, _, _ = build_tiny()
    trained = prepare_model_for_tuning(model, parse_tuning_config(PLAIN | {"unfrozen": ["attn"]}))
    assert trained
    assert not any(name.startswith("vision_encoder.") for name in trained)


def test_adapters_can_start_from_a_peft_folder(build_tiny, tmp_path):
    first, _, tokenizer = build_tiny()
    prepare_model_for_tuning(first, parse_tuning_config(LORA))
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    first.lang_encoder.save_pretrained(tmp_path)
    second, _, _ = build_tiny()
    trained = prepare_model_for_tuning(second, parse_tuning_config(LORA | {"from_pretrained": str(tmp_path)}))
    assert any("lora_A" in name for name in trained)
    torch.testing.assert_close(logits(second.eval(), tokenizer), logits(first.eval(), tokenizer), **EXACT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (LORA | {"lora_rank": 3}, "unknown key 'lora_rank'"),
        ({key: value for key, value in LORA.items() if key != "lora_alpha"}, "missing key 'lora_alpha'"),
        ({"unfrozen": []}, "missing key 'lora'"),
        ({"lora": False}, "missing key 'unfrozen'"),
        (LORA | {"lora": "yes"}, "lora must be true or false, not 'yes'"),
        (LORA | {"lora": 1}, "lora must be true or false, not 1"),
        (PLAIN | {"unfrozen": "perceiver"}, "unfrozen must be a list of strings"),
        (PLAIN | {"unfrozen": ["perceiver", 3]}, "unfrozen must be a list of strings"),
        (LORA | {"lora_target_modules": [None]}, "lora_target_modules must be a list of strings"),
        (LORA | {"lora_target_modules": []}, r"with lora true, lora_target_modules must not be \[\]"),
        (
            LORA | {"lora_target_modules": ["foo:q_proj"]},
            "lora_target_modules has 'foo:q_proj': .* lm, xattn, perceiver",
        ),
        (LORA | {"lora_target_modules": [":q_proj"]}, "lora_target_modules has ':q_proj'"),
        (LORA | {"lora_target_modules": ["lm:"]}, "lora_target_modules has 'lm:'"),
        (LORA | {"lora_r": "4"}, "lora_r must be a whole number from 0, not '4'"),
        (LORA | {"lora_r": True}, "lora_r must be a whole number from 0, not True"),
        (LORA | {"lora_r": -4}, "lora_r must be a whole number from 0, not -4"),
        (LORA | {"lora_r": 0}, "with lora true, lora_r must not be 0"),
        (LORA | {"lora_alpha": 0.5}, "lora_alpha must be a whole number"),
        (LORA | {"lora_alpha": 0}, "with lora true, lora_alpha must not be 0"),
        (LORA | {"lora_dropout": 1}, "lora_dropout must be a number from 0 to below 1, not 1"),
        (LORA | {"lora_dropout": False}, "lora_dropout must be a number"),
        (LORA | {"lora_dropout": float("nan")}, "lora_dropout must be a number"),
        (PLAIN | {"learning_rates": ["perceiver"]}, "learning_rates must be an object"),
        (PLAIN | {"learning_rates": {"perceiver": 0}}, "learning_rates 'perceiver' must be a positive number, not 0"),
        (PLAIN | {"learning_rates": {"perceiver": "fast"}}, "learning_rates 'perceiver' must be a positive number"),
        (PLAIN | {"learning_rates": {"perceiver": True}}, "learning_rates 'perceiver' must be a positive number"),
        (
            PLAIN | {"learning_rates": {"perceiver": float("inf")}},
            "learning_rates 'perceiver' must be a positive number",
        ),
        (LORA | {"from_pretrained": True}, "from_pretrained must be a PEFT folder or false, not True"),
        (LORA | {"from_pretrained": ""}, "from_pretrained must be a PEFT folder or false"),
        ([], "expected an object, found list"),
    ],
)
def test_a_malformed_config_is_refused_by_file_and_key(tmp_path, raw, message):
    path = write_json_file(tmp_path / "tuning.json", raw)
    with pytest.raises(ValueError, match=message) as refusal:
        read_tuning_config(path)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_missing_or_not_json_is_refused_by_name(tmp_path):
    path = tmp_path / "tuning.json"
    with pytest.raises(ValueError, match=r"tuning\.json does not exist"):
        read_tuning_config(path)
    path.write_text('{\n"lora": maybe}')
    with pytest.raises(ValueError, match=r"tuning\.json, line 2"):
        read_tuning_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_target_modules": ["q_proj", "q_prj"]}, "LoRA target 'q_prj' matches no module"),
        ({"lora_target_modules": ["Wqkv"]}, "LoRA target 'Wqkv' matches no module of LlamaForCausalLM"),
        (
            {"lora_target_modules": ["q_proj", "xattn:q_proj"]},
            "LoRA target 'xattn:q_proj' matches no module of part 'xattn'",
        ),
        ({"lora_target_modules": ["q_proj", "lm:Wqkv"]}, "LoRA target 'lm:Wqkv' matches no module of part 'lm'"),
        ({"lora_target_modules": ["perceiver:q_proj"]}, "LoRA target 'perceiver:q_proj' matches no module of part"),
        ({"lora_target_modules": ["self_attn"]}, "LoRA target 'self_attn' matches no module"),
        ({"unfrozen": ["perceiver", "preceiver"]}, "unfrozen 'preceiver' matches no parameter"),
        ({"unfrozen": ["perceiver.layer.*"]}, r"unfrozen 'perceiver\.layer\.\*' matches no parameter"),
        ({"learning_rates": {"preceiver": 1.0}}, "learning_rates 'preceiver' matches no parameter"),
        ({"learning_rates": {"ff_gate": 1.0}}, "learning_rates 'ff_gate' is without effect: what it matches is frozen"),
        ({"learning_rates": {"lora": 1.0, "lm": 0.1}}, "learning_rates 'lm' is without effect: .* by a key before it"),
        ({"unfrozen": ["visual", "vision_encoder"]}, "matches no parameter outside the vision tower"),
    ],
)
def test_a_target_or_fragment_that_matches_nothing_is_refused_by_name(build_tiny, changes, message):
    model, _, _ = build_tiny()
    with pytest.raises(ValueError, match=message):
        prepare_model_for_tuning(model, parse_tuning_config(LORA | changes))


def test_the_first_fragment_in_a_name_gives_its_learning_rate():
    rates = TuningConfig(**PLAIN, learning_rates={"gate": 0.5, "attn": 0.1}).learning_rates
    names = ["layer.attn_gate", "layer.attn.to_q", "perceiver"]
    assert [learning_rate_of(name, 0.01, rates) for name in names] == [0.5, 0.1, 0.01]
