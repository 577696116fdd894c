"""Gated cross-attention spliced into causal language models of many families."""

import pytest
import torch
from tiny import EXACT, random_images
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from open_flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLayer, find_decoder_layers, inject
from open_flamingo.src.vision import create_vision_encoder, visual_width

VOCABULARY = 96
END_OF_CHUNK_ID, IMAGE_ID = 94, 95
NEW_TOKENS = 6
STANDARD = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
LLAMA_LIKE = {**STANDARD, "intermediate_size": 64}
GROUPED = {**LLAMA_LIKE, "num_key_value_heads": 2}
SLIDING = {**GROUPED, "head_dim": 8, "sliding_window": 6}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
FAMILIES = {
    "opt": {**STANDARD, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "init_std": 0.3},
    "gpt_neox": LLAMA_LIKE,
    "gptj": {**GPT_LIKE, "rotary_dim": 8},
    "gpt2": GPT_LIKE,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.3},
    "llama": LLAMA_LIKE,
    "mistral": {**GROUPED, "sliding_window": 6},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "qwen3_moe": {**GROUPED, "moe_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1},
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "phi": LLAMA_LIKE,
}
LAYER_NAMES = {
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "gptj": "transformer.h",
    "gpt2": "transformer.h",
    "mpt": "transformer.blocks",
}


def random_lm(family: str, **changes) -> PreTrainedModel:
    """A random causal language model of `family`, without special tokens of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **{**FAMILIES[family], **changes})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return AutoModelForCausalLM.from_config(config).eval()


def text_with_images() -> torch.Tensor:
    """Ids (2, 12) with one and two images."""
    ids = torch.randint(END_OF_CHUNK_ID, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[0, 2] = ids[1, 0] = ids[1, 6] = IMAGE_ID
    return ids


@pytest.fixture(scope="module")
def visual(tiny_vision):
    return create_vision_encoder(str(tiny_vision), "none")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_zero_gates_every_family_stays_the_language_model_it_was(family, visual):
    lm, ids = random_lm(family), text_with_images()
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
        model = Flamingo(visual, lm, END_OF_CHUNK_ID, IMAGE_ID, vis_dim=visual_width(visual)).eval()
        actual = model(random_images(2, 2), ids).logits
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_sees_images_and_generates_the_same_with_and_without_a_cache(family, visual):
    model = Flamingo(visual, random_lm(family), END_OF_CHUNK_ID, IMAGE_ID, vis_dim=visual_width(visual)).eval()
    for block in model.gated_cross_attn_layers:
        nn.init.constant_(block.attn_gate, 1.0)
        nn.init.constant_(block.ff_gate, 1.0)
    ids = text_with_images()
    with torch.no_grad():
        first, second = (model(random_images(2, 2, seed), ids).logits for seed in (0, 1))
    after_image = (ids == IMAGE_ID).cumsum(dim=1) > 0
    assert torch.equal((first - second).abs().amax(dim=-1) > 1e-4, after_image)

    settings = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "no_repeat_ngram_size": 1,
        "pad_token_id": 0,
    }
    with_cache, without = (
        model.generate(random_images(2, 2), ids, torch.ones_like(ids), use_cache=use_cache, **settings)
        for use_cache in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_layers_of_every_family_are_found(family):
    assert find_decoder_layers(random_lm(family)) == LAYER_NAMES.get(family, "model.layers")


@pytest.mark.parametrize(("every", "with_block"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_every_nth_layer_gets_a_block_counted_from_the_bottom(every, with_block):
    lm = random_lm("llama", num_hidden_layers=4)
    inject(lm, vis_dim=16, every=every)
    assert [i for i, layer in enumerate(lm.model.layers) if layer.gated_cross_attn_layer is not None] == with_block


def test_the_wrapper_shows_the_attributes_of_its_decoder_layer():
    layer = random_lm("llama").model.layers[0]
    wrapper = FlamingoLayer(None, layer)
    assert wrapper.hidden_size == layer.hidden_size == STANDARD["hidden_size"]
    assert wrapper.self_attn is layer.self_attn
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapper.no_such_thing


def test_a_wrong_name_of_the_decoder_layers_is_refused_and_the_right_one_is_named():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no list of layers 'model\.h'; it has: model\.layers"):
        inject(random_lm("llama"), vis_dim=16, every=1, attr_name="model.h")


@pytest.mark.parametrize(("every", "message"), [(0, "must be at least 1, not 0"), (3, "is 3, but .* has 2 layers")])
def test_intervals_that_leave_no_block_are_refused(every, message):
    with pytest.raises(ValueError, match=f"cross_attn_every_n_layers {message}"):
        inject(random_lm("llama"), vis_dim=16, every=every)


def test_a_second_list_as_long_as_the_model_is_deep_has_to_be_told_apart_by_name():
    lm = random_lm("llama")
    lm.model.adapters = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(ValueError, match=r"found 2 lists of 2 decoder layers .* decoder_layers_attr_name"):
        inject(lm, vis_dim=16, every=1)
    inject(lm, vis_dim=16, every=1, attr_name="model.layers")
    assert all(isinstance(layer, FlamingoLayer) for layer in lm.model.layers)


def test_a_model_without_a_list_of_its_depth_is_refused():
    lm = random_lm("llama")
    lm.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"found 0 lists of 5 decoder layers \(model\.layers\)"):
        inject(lm, vis_dim=16, every=1)
