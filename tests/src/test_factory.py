"""From names and paths to a model: special tokens, embeddings, what trains, and refusals."""

import pytest
import torch
from tiny import EXACT, byte_level_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from open_flamingo import create_model_and_transforms

BASE_ENTRIES = 400


@pytest.fixture
def padded_tokenizer(tmp_path):
    """The folder of a tokenizer that has a pad token of its own."""
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_special_tokens_follow_the_tokenizer_in_the_order_of_released_checkpoints(build_tiny):
    model, _, tokenizer = build_tiny()
    added = tokenizer.convert_ids_to_tokens(list(range(BASE_ENTRIES, len(tokenizer))))
    assert added == ["<|endofchunk|>", "<image>", "<PAD>"]
    assert (model.eoc_token_id, model.media_token_id) == (BASE_ENTRIES, BASE_ENTRIES + 1)
    assert tokenizer.pad_token_id == BASE_ENTRIES + 2


def test_a_tokenizer_with_a_pad_token_keeps_it(build_tiny, padded_tokenizer):
    model, _, tokenizer = build_tiny(tokenizer_path=str(padded_tokenizer))
    assert len(tokenizer) == BASE_ENTRIES + 2
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.lang_encoder.get_input_embeddings().num_embeddings == len(tokenizer)


def test_special_tokens_are_single_ids_and_leave_the_text_around_them_alone(build_tiny):
    _, _, tokenizer = build_tiny()
    plain = byte_level_tokenizer()
    ids = tokenizer("A cat <image> on<|endofchunk|>")["input_ids"]
    assert ids == [*plain("A cat ")["input_ids"], BASE_ENTRIES + 1, *plain(" on")["input_ids"], BASE_ENTRIES]


def test_embeddings_grow_by_the_new_tokens_and_keep_the_old_rows(build_tiny, tiny_lm):
    model, _, tokenizer = build_tiny()
    old = AutoModelForCausalLM.from_pretrained(tiny_lm).get_input_embeddings().weight
    new = model.lang_encoder.get_input_embeddings().weight
    assert len(new) == model.lang_encoder.get_output_embeddings().out_features == len(tokenizer) == len(old) + 3
    torch.testing.assert_close(new[: len(old)], old, **EXACT)


def test_embeddings_shrink_to_the_tokenizer_where_the_language_model_has_more_rows(build_tiny, tiny_lm, tmp_path):
    lm = AutoModelForCausalLM.from_pretrained(tiny_lm)
    lm.resize_token_embeddings(512)
    lm.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(tmp_path)
    model, _, tokenizer = build_tiny(lm=tmp_path)
    weight = model.lang_encoder.get_input_embeddings().weight
    assert len(weight) == model.lang_encoder.get_output_embeddings().out_features == len(tokenizer) == BASE_ENTRIES + 3
    torch.testing.assert_close(weight, lm.get_input_embeddings().weight[: len(weight)], **EXACT)


@pytest.mark.parametrize("freeze_lm_embeddings", [False, True])
def test_resampler_gated_blocks_and_unless_frozen_the_embeddings_train(build_tiny, freeze_lm_embeddings):
    model, _, _ = build_tiny(every=2, freeze_lm_embeddings=freeze_lm_embeddings)
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith("perceiver.")
        or ".gated_cross_attn_layer." in name
        or (name == "lang_encoder.model.embed_tokens.weight" and not freeze_lm_embeddings)
    }
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert len(model.gated_cross_attn_layers) == 2


def test_a_new_model_has_closed_gates(tiny_vision, tiny_lm):
    model, _, _ = create_model_and_transforms(str(tiny_vision), "none", str(tiny_lm))
    assert [block.attn_gate.item() for block in model.gated_cross_attn_layers] == [0.0] * 4
    assert [block.ff_gate.item() for block in model.gated_cross_attn_layers] == [0.0] * 4


def test_the_decoder_layers_can_be_named(build_tiny):
    model, _, _ = build_tiny(decoder_layers_attr_name="model.layers")
    assert len(model.gated_cross_attn_layers) == 4
    with pytest.raises(ValueError, match=r"no list of layers 'transformer\.h'"):
        build_tiny(decoder_layers_attr_name="transformer.h")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"lm": "no-such-lm"}, "tokenizer 'no-such-lm' could not be loaded"),
        ({"lm": "no-such-lm", "tokenizer_path": ""}, "tokenizer 'no-such-lm' could not be loaded"),
        ({"tokenizer_path": "no-such-tokenizer"}, "tokenizer 'no-such-tokenizer' could not be loaded"),
    ],
)
def test_unknown_paths_are_refused_by_name(build_tiny, paths, message):
    with pytest.raises(ValueError, match=message):
        build_tiny(**paths)


def test_an_unknown_language_model_is_refused_by_name(build_tiny, tiny_lm):
    with pytest.raises(ValueError, match="language model 'no-such-lm' could not be loaded: give a folder or a name"):
        build_tiny(lm="no-such-lm", tokenizer_path=str(tiny_lm))


def test_a_folder_without_a_configuration_is_refused_by_name(build_tiny, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer .* is a folder without a configuration \(config\.json\)"):
        build_tiny(lm=tmp_path)
