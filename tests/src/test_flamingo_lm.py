"""The splice of gated cross-attention into a causal language model: which layers, under which names, and refusals."""

import pytest
from test_families import DEPTH, WIDTH, random_lm
from torch import nn

from open_flamingo.src.flamingo_lm import FlamingoLayer, inject


@pytest.mark.parametrize(("every", "with_block"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_every_nth_layer_gets_a_block_counted_from_the_bottom(every, with_block):
    lm = random_lm("llama 2")
    inject(lm, vis_dim=16, every=every)
    assert [i for i, layer in enumerate(lm.model.layers) if layer.gated_cross_attn_layer is not None] == with_block


def test_the_wrapper_shows_the_attributes_of_its_decoder_layer():
    layer = random_lm("llama 2").model.layers[0]
    wrapper = FlamingoLayer(None, layer)
    assert wrapper.hidden_size == layer.hidden_size == WIDTH
    assert wrapper.self_attn is layer.self_attn
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapper.no_such_thing


def test_a_wrong_name_of_the_decoder_layers_is_refused_and_the_right_one_is_named():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no list of layers 'model\.h'; it has: model\.layers"):
        inject(random_lm("llama 2"), vis_dim=16, every=1, attr_name="model.h")


@pytest.mark.parametrize(("every", "message"), [(0, "must be at least 1, not 0"), (5, "is 5, but .* has 4 layers")])
def test_intervals_that_leave_no_block_are_refused(every, message):
    with pytest.raises(ValueError, match=f"cross_attn_every_n_layers {message}"):
        inject(random_lm("llama 2"), vis_dim=16, every=every)


def test_a_second_list_as_long_as_the_model_is_deep_has_to_be_told_apart_by_name():
    lm = random_lm("llama 2")
    lm.model.adapters = nn.ModuleList(nn.Identity() for _ in range(DEPTH))
    with pytest.raises(ValueError, match=r"found 2 lists of 4 decoder layers .* decoder_layers_attr_name"):
        inject(lm, vis_dim=16, every=1)
    inject(lm, vis_dim=16, every=1, attr_name="model.layers")
    assert all(isinstance(layer, FlamingoLayer) for layer in lm.model.layers)


def test_a_model_without_a_list_of_its_depth_is_refused():
    lm = random_lm("llama 2")
    lm.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"found 0 lists of 5 decoder layers \(model\.layers\)"):
        inject(lm, vis_dim=16, every=1)
