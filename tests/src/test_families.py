"""Every family of causal language models works as it comes: identity, images, training, generation, checkpointing."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tiny import EXACT, FLOATS, inputs_seen, random_images
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.prefixes import Prefixes
from open_flamingo.src.factory import freeze
from open_flamingo.src.flamingo_lm import FlamingoLayer, find_decoder_layers
from open_flamingo.src.vision import create_vision_encoder, visual_width

VOCABULARY = 100
PAD_ID, END_OF_CHUNK_ID, IMAGE_ID = 0, 98, 99
WIDTH, DEPTH, LENGTH, WINDOW = 64, 4, 16, 6
NEW_TOKENS = 5
SPREAD = {"initializer_range": 0.2}
STANDARD = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, **SPREAD}
LLAMA_LIKE = {**STANDARD, "intermediate_size": 128, "max_position_embeddings": 64}
GROUPED = {**LLAMA_LIKE, "num_key_value_heads": 2}
HEADS_OF_16 = {**GROUPED, "head_dim": 16}
SLIDING = {**HEADS_OF_16, "sliding_window": WINDOW}
GPT_LIKE = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, **SPREAD}
MOE = {"num_experts_per_tok": 2}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "opt": (
        "opt",
        "model.decoder.layers",
        {**STANDARD, "ffn_dim": 128, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64, "init_std": 0.2},
    ),
    "gpt_neox": ("gpt_neox", "gpt_neox.layers", LLAMA_LIKE),
    "gptj": ("gptj", "transformer.h", {**GPT_LIKE, "rotary_dim": 8}),
    "gpt2": ("gpt2", "transformer.h", GPT_LIKE),
    "mpt": (
        "mpt",
        "transformer.blocks",
        {"d_model": WIDTH, "n_layers": DEPTH, "n_heads": 4, "max_seq_len": 64, **SPREAD},
    ),
    "bloom": ("bloom", "transformer.h", {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": 4, **SPREAD}),
    "falcon": ("falcon", "transformer.h", STANDARD),
    "falcon, alibi": (
        "falcon",
        "transformer.h",
        {**STANDARD, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "llama 2": ("llama", "model.layers", LLAMA_LIKE),
    "llama 3": ("llama", "model.layers", {**GROUPED, "rope_parameters": LLAMA_3_ROPE}),
    "smollm2": ("llama", "model.layers", {**GROUPED, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", "model.layers", {**GROUPED, "no_rope_layer_interval": 2}),
    "mistral": ("mistral", "model.layers", {**GROUPED, "sliding_window": WINDOW}),
    "mixtral": ("mixtral", "model.layers", {**GROUPED, **MOE, "num_local_experts": 4}),
    "qwen2": ("qwen2", "model.layers", GROUPED),
    "qwen3": ("qwen3", "model.layers", HEADS_OF_16),
    "qwen3 moe": ("qwen3_moe", "model.layers", {**HEADS_OF_16, **MOE, "num_experts": 4, "moe_intermediate_size": 32}),
    "gemma 2": ("gemma2", "model.layers", SLIDING),
    "gemma 3": (
        "gemma3_text",
        "model.layers",
        {**SLIDING, "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi 2": ("phi", "model.layers", LLAMA_LIKE),
    "phi 3": ("phi3", "model.layers", GROUPED),
    "stablelm": ("stablelm", "model.layers", GROUPED),
    "olmo 2": ("olmo2", "model.layers", GROUPED),
    "olmo 3": ("olmo3", "model.layers", {**GROUPED, "sliding_window": WINDOW}),
    "gpt-oss": (
        "gpt_oss",
        "model.layers",
        {**SLIDING, **MOE, "num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "deepseek 3": (
        "deepseek_v3",
        "model.layers",
        {
            **LLAMA_LIKE,
            **MOE,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gemma 4": (
        "gemma4_text",
        "model.layers",
        {
            **SLIDING,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma 3 with its own tower": (
        "gemma3",
        "model.language_model.layers",
        {
            "text_config": {**SLIDING, "vocab_size": VOCABULARY},
            "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28},
        },
    ),
    "qwen 3.5, linear attention": (
        "qwen3_5_text",
        "model.layers",
        {
            **HEADS_OF_16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "lfm 2, convolutions": ("lfm2", "model.layers", {**GROUPED, "layer_types": ["conv", "full_attention"] * 2}),
    "granite 4, mamba": (
        "granitemoehybrid",
        "model.layers",
        {
            **GROUPED,
            **MOE,
            "layer_types": ["mamba", "attention"] * 2,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
        },
    ),
    "granite": ("granite", "model.layers", {**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
}
"""Model type, name of the decoder layers, and sizes, of one tiny random model per family."""

every_family = pytest.mark.parametrize("family", FAMILIES)


def random_lm(family: str) -> PreTrainedModel:
    """A random causal language model of `family`, without special tokens of its own."""
    torch.manual_seed(0)
    model_type, _, sizes = FAMILIES[family]
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    return AutoModelForCausalLM.from_config(config).eval()


def left_padded_batch() -> dict[str, Tensor]:
    """Texts of 16 and 12 tokens with two images and one, both with some text before their first image."""
    ids = torch.randint(1, END_OF_CHUNK_ID, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[0, 2] = ids[0, 9] = ids[1, 6] = IMAGE_ID
    ids[1, :4] = PAD_ID
    return {"lang_x": ids, "attention_mask": (ids != PAD_ID).long()}


def training_batch() -> dict[str, Tensor]:
    """The batch with its images, and labels of everything but padding and images."""
    batch = left_padded_batch()
    labels = batch["lang_x"].masked_fill((batch["lang_x"] == IMAGE_ID) | (batch["attention_mask"] == 0), -100)
    return {**batch, "vision_x": random_images(2, 2), "labels": labels}


def set_gates(model: Flamingo, value: float) -> None:
    for block in model.gated_cross_attn_layers:
        nn.init.constant_(block.attn_gate, value)
        nn.init.constant_(block.ff_gate, value)


def trained(model: Flamingo) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def assert_training_lowers_the_loss(model: Flamingo, batch: dict[str, Tensor]) -> None:
    """Five steps on one batch give every new parameter, and no other, a finite gradient, and lower the loss."""
    set_gates(model, 0.5)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-3)
    before = model(**batch).loss
    torch.manual_seed(0)  # dropout, where the family has it
    model.train()
    for step in range(5):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in trained(model).items()}
            assert [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()] == []
        optimizer.step()
    assert model.eval()(**batch).loss < before - 0.1
    assert [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


def assert_generation_does_not_depend_on_the_cache(model: Flamingo, images: Tensor, beams: int) -> None:
    """New tokens of the left-padded batch, each of them seen by the next."""
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "num_beams": beams,
        "do_sample": False,
        "no_repeat_ngram_size": 1,  # a random model would say one word forever
        "pad_token_id": PAD_ID,
    }
    with_cache, without = (
        model.generate(images, **left_padded_batch(), use_cache=use_cache, **settings) for use_cache in (True, False)
    )
    assert with_cache.shape == (2, LENGTH + NEW_TOKENS)
    assert with_cache.tolist() == without.tolist()


def assert_checkpointing_changes_nothing(model: Flamingo, batch: dict[str, Tensor]) -> None:
    """The same loss and gradients, though every layer and every block runs twice."""
    model.train()
    layers = [m for m in model.lang_encoder.modules() if isinstance(m, FlamingoLayer)]
    inner = [_first_projection(part) for layer in layers for part in layer.children()]

    def loss_and_gradients() -> tuple[Tensor, dict[str, Tensor | None], int]:
        torch.manual_seed(0)  # dropout, where the family has it
        model.zero_grad()
        with inputs_seen(inner) as runs:
            loss = model(**batch).loss
            loss.backward()
        return loss.detach(), {name: p.grad for name, p in trained(model).items()}, len(runs)

    loss, gradients, runs = loss_and_gradients()
    model.gradient_checkpointing_enable()
    same_loss, same_gradients, runs_with = loss_and_gradients()
    assert (runs, runs_with) == (2 * DEPTH, 4 * DEPTH)
    torch.testing.assert_close(same_loss, loss, **EXACT)
    torch.testing.assert_close(same_gradients, gradients, **FLOATS)


def _first_projection(layer: nn.Module) -> nn.Module:
    """A module deep inside `layer`: transformers recomputes what a layer does, not the call of the layer."""
    return next(m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D))


@dataclass
class Family:
    bare_logits: Tensor
    """What the language model says of the batch without us."""
    model: Flamingo
    """The model with open gates, in evaluation mode, its embeddings frozen."""


@pytest.fixture(scope="module")
def built(tiny_vision):
    """A family's model, built once; tests that change it copy it."""
    torch.manual_seed(0)
    visual, _ = create_vision_encoder(str(tiny_vision), "none")
    width = visual_width(visual)

    @cache
    def build(family: str) -> Family:
        lm, batch = random_lm(family), left_padded_batch()
        with torch.no_grad():
            bare_logits = lm(input_ids=batch["lang_x"], attention_mask=batch["attention_mask"]).logits
        model = Flamingo(
            visual, lm, END_OF_CHUNK_ID, IMAGE_ID, vis_dim=width, resampler_depth=2, resampler_latents=8
        ).eval()
        freeze(model, freeze_lm_embeddings=True)
        set_gates(model, 1.0)
        return Family(bare_logits, model)

    return build


@every_family
def test_the_decoder_layers_are_found_and_their_blocks_named_after_them(family, built):
    name = FAMILIES[family][1]
    assert find_decoder_layers(random_lm(family)) == name
    model = built(family).model
    in_blocks = {key for key in model.state_dict() if "gated_cross_attn" in key}
    assert in_blocks == {
        f"lang_encoder.{name}.{i}.gated_cross_attn_layer.{parameter}"
        for i, block in enumerate(model.gated_cross_attn_layers)
        for parameter in block.state_dict()
    }
    assert len(model.gated_cross_attn_layers) == DEPTH


@pytest.mark.parametrize("family", [name for name, (_, _, sizes) in FAMILIES.items() if "sliding_window" in sizes])
def test_sliding_windows_are_shorter_than_the_text(family, built):
    config = built(family).model.lang_encoder.config
    assert config.sliding_window == WINDOW < LENGTH
    assert "sliding_attention" in getattr(config, "layer_types", ["sliding_attention"])


@every_family
def test_with_zero_gates_the_model_stays_the_language_model_it_was(family, built):
    model = deepcopy(built(family).model)
    set_gates(model, 0.0)
    with torch.no_grad():
        logits = model(random_images(2, 2), **left_padded_batch()).logits
    torch.testing.assert_close(logits, built(family).bare_logits, **EXACT)


@every_family
def test_with_open_gates_images_matter_to_the_text_after_them_and_to_nothing_before(family, built):
    model, batch = built(family).model, left_padded_batch()
    with torch.no_grad():
        first, second = (model(random_images(2, 2, seed), **batch).logits for seed in (0, 1))
    change = (first - second).abs().amax(dim=-1)
    after_image = (batch["lang_x"] == IMAGE_ID).cumsum(dim=1) > 0
    assert change[after_image].min() > 1e-3
    real_text_before = ~after_image & batch["attention_mask"].bool()
    assert change[real_text_before].max() < 1e-5  # not zero: experts round by what else is in their batch


@every_family
def test_the_loss_of_some_tokens_is_that_of_all_logits(family, built):
    model, batch = built(family).model, left_padded_batch()
    supervised = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        everywhere = model(random_images(2, 2), **batch).logits[:, :-1]
        out = model(random_images(2, 2), **batch, supervised=supervised)
    at, targets = supervised[:, 1:], batch["lang_x"][:, 1:][supervised[:, 1:]]
    expected = nn.functional.cross_entropy(everywhere[at], targets, reduction="none")
    torch.testing.assert_close(out.losses, expected, **FLOATS)


@every_family
def test_a_few_training_steps_reach_every_new_parameter_and_lower_the_loss(family, built):
    assert_training_lowers_the_loss(deepcopy(built(family).model), training_batch())


@every_family
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_a_cache(family, built, beams):
    assert_generation_does_not_depend_on_the_cache(built(family).model, random_images(2, 2), beams)


@every_family
def test_a_text_that_goes_on_continues_the_cache_of_its_beginning(family, built):
    model = built(family).model
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "no_repeat_ngram_size": 1,
        "pad_token_id": PAD_ID,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    text = left_padded_batch()["lang_x"][:1]
    images = random_images(1, 2)
    prefixes = Prefixes(size=1)
    begun = model.generate(images[:, :1], text[:, :7], torch.ones_like(text[:, :7]), **settings)
    prefixes.keep(begun.sequences[0].tolist(), begun.past_key_values)
    cache = prefixes.take(text[0].tolist())
    assert cache is None or cache.get_seq_length() >= 7
    continued = model.generate(images, text, torch.ones_like(text), past_key_values=cache, **settings)
    afresh = model.generate(images, text, torch.ones_like(text), **settings)
    assert continued.sequences.tolist() == afresh.sequences.tolist()
    torch.testing.assert_close(torch.stack(continued.logits), torch.stack(afresh.logits), **FLOATS)


@every_family
def test_scores_are_the_log_likelihoods_of_whole_texts(family, built):
    model = built(family).model
    text, images = left_padded_batch()["lang_x"][:1], random_images(1, 2)
    candidates = [text[0, :n] for n in (1, 5, 3, 8)]
    for candidate in candidates:
        candidate[candidate == IMAGE_ID] = 1
    expected = []
    for candidate in candidates:
        ids = torch.cat((text, candidate[None]), dim=1)
        logits = model(images, ids).logits[0, LENGTH - 1 : -1].log_softmax(dim=-1)
        expected.append(logits.gather(1, candidate[:, None]).sum())
    torch.testing.assert_close(model.score(images, text, candidates), torch.stack(expected), **FLOATS)
    torch.testing.assert_close(model.score(images, text, candidates[:1]), expected[0][None], **FLOATS)
    assert model.score(images, text, []).tolist() == []


@every_family
def test_gradient_checkpointing_recomputes_every_layer_and_gives_the_same_loss_and_gradients(family, built):
    assert_checkpointing_changes_nothing(deepcopy(built(family).model), training_batch())


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("gemma3n_text", {**SLIDING, "num_kv_shared_layers": 0}, "several streams per token: it is not supported"),
        ("rwkv", {"hidden_size": WIDTH, "num_hidden_layers": DEPTH}, "a state in place of a KV cache"),
    ],
)
def test_a_family_that_cannot_hold_images_is_refused_before_it_says_anything(
    built, monkeypatch, family, sizes, message
):
    monkeypatch.setitem(FAMILIES, family, (family, "", sizes))
    model = built(family).model
    with pytest.raises(ValueError, match=message):
        model.generate(random_images(2, 2), **left_padded_batch(), max_new_tokens=2)
