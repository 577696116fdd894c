"""MPT-1B as a model of transformers: its names and shapes, its cache, what it saves and loads, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import EXACT, inputs_seen, random_images
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, MptConfig, MptForCausalLM

from open_flamingo import Flamingo
from open_flamingo.src.attention import LONG
from open_flamingo.src.flamingo_lm import find_decoder_layers
from open_flamingo.src.mosaic_gpt import MosaicGPTConfig, MosaicGPTForCausalLM
from open_flamingo.src.vision import create_vision_encoder, visual_width

VOCABULARY, END_OF_CHUNK_ID, IMAGE_ID = 96, 94, 95
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PUBLISHED = {
    "model_type": "mosaic_gpt",
    "architectures": ["MosaicGPT"],
    "auto_map": {
        "AutoConfig": "configuration_mosaic_gpt.MosaicGPTConfig",
        "AutoModelForCausalLM": "mosaic_gpt.MosaicGPT",
    },
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "mlp_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50432,
    "attn_pdrop": 0,
    "resid_pdrop": 0,
    "emb_pdrop": 0,
    "attn_impl": "torch",
    "attn_qk_ln": True,
    "attn_clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
    "alibi_bias_max": 8,
    "init_device": "cpu",
    "logit_scale": None,
    "no_bias": True,
    "param_init_fn": "kaiming_normal_",
    "init_std": 0.02,
    "embedding_fraction": 1.0,
    "low_precision_layernorm": True,
    "use_cache": False,
    "torch_dtype": "bfloat16",
}
"""The settings of MPT-1B's config.json."""


def random_lm(**changes) -> MosaicGPTForCausalLM:
    """A random model of two layers, with scores large enough to matter."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": VOCABULARY, "init_std": 0.3}
    model = MosaicGPTForCausalLM(MosaicGPTConfig(**{**sizes, **changes})).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    return model


def batch(*, shorter_by: int = 6) -> dict[str, Tensor]:
    """Two texts of ids, the second one padded on the left."""
    ids = torch.randint(END_OF_CHUNK_ID, (2, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :shorter_by] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_of(model: nn.Module, **inputs) -> Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return model(**inputs).logits


def gradients(model: MosaicGPTForCausalLM) -> dict[str, Tensor]:
    """The gradient of each parameter for the loss of predicting a batch."""
    inputs = batch()
    model.train()
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def write_folder(folder, model: MosaicGPTForCausalLM, **config) -> None:
    """A folder like the released ones: the weights, and a config.json that names code of its own."""
    folder.mkdir()
    sizes = {name: getattr(model.config, name) for name in ("d_model", "n_heads", "n_layers", "vocab_size")}
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, **sizes, **config}))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_mpt_1b_has_the_names_and_shapes_of_the_released_weights():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED))
    expected = {"transformer.wte.weight": (50432, 2048), "transformer.ln_f.weight": (2048,)}
    for i in range(24):
        layer = {
            "ln_1": (2048,),
            "attn.Wqkv": (6144, 2048),
            "attn.q_ln": (2048,),
            "attn.k_ln": (2048,),
            "attn.out_proj": (2048, 2048),
            "ln_2": (2048,),
            "mlp.mlp_up": (8192, 2048),
            "mlp.mlp_down": (2048, 8192),
        }
        expected |= {f"transformer.blocks.{i}.{name}.weight": shape for name, shape in layer.items()}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert set(model.state_dict()) == set(expected) | {"lm_head.weight"}
    assert list(model.buffers()) == []


def test_every_layer_norm_has_the_epsilon_of_the_published_code():
    assert {m.eps for m in random_lm().modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(
    "settings", [{}, {"clip_qkv": 0.5}, {"softmax_scale": 0.1}], ids=lambda s: "-".join(s) or "plain"
)
def test_without_norms_of_queries_and_keys_it_is_mpt(settings):
    clip = settings.get("clip_qkv")
    ours = random_lm(attn_qk_ln=False, attn_clip_qkv=clip, softmax_scale=settings.get("softmax_scale"))
    config = MptConfig(
        d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=VOCABULARY, attn_config={**settings}
    )
    theirs = MptForCausalLM(config).eval()
    renamed = {
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "mlp.mlp_up": "ffn.up_proj",
        "mlp.mlp_down": "ffn.down_proj",
        "ln_f": "norm_f",
    }
    weights = ours.state_dict()
    for old, new in renamed.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    theirs.load_state_dict(weights)
    torch.testing.assert_close(logits_of(ours, **batch()), logits_of(theirs, **batch()), **CLOSE)


def test_norms_see_whole_queries_and_keys_before_the_heads_part():
    model, ids = random_lm(), batch()["input_ids"]
    block = model.transformer.blocks[0]
    q, k, _ = block.attn.Wqkv(block.ln_1(model.transformer.wte(ids))).chunk(3, dim=-1)
    with inputs_seen([block.attn.q_ln]) as queries, inputs_seen([block.attn.k_ln]) as keys:
        model(ids)
    torch.testing.assert_close([*queries, *keys], [q.detach(), k.detach()], **EXACT)


def test_padding_on_the_left_changes_nothing():
    model, inputs = random_lm(), batch()
    alone = logits_of(model, input_ids=inputs["input_ids"][1:, 6:])
    torch.testing.assert_close(logits_of(model, **inputs)[1:, 6:], alone, **CLOSE)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_of_four_dimensions_may_come_ready_made(kind):
    model, inputs = random_lm(), batch()
    seen = torch.ones(21, 21, dtype=torch.bool).tril() & inputs["attention_mask"].bool()[:, None, None]
    mask = seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    actual = logits_of(model, input_ids=inputs["input_ids"], attention_mask=mask)
    torch.testing.assert_close(actual, logits_of(model, **inputs), **EXACT)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_of_transformers_makes_no_difference(implementation):
    expected, model = random_lm(), random_lm()
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(logits_of(model, **batch()), logits_of(expected, **batch()), **EXACT)


def test_steps_with_a_cache_equal_the_whole_text():
    model, inputs, cache = random_lm(), batch(), DynamicCache()
    steps = [
        logits_of(
            model,
            input_ids=inputs["input_ids"][:, start:end],
            attention_mask=inputs["attention_mask"][:, :end],
            past_key_values=cache,
        )
        for start, end in [(0, 9), (9, 10), (10, 14), (14, 21)]
    ]
    attended = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(steps, dim=1)[attended], logits_of(model, **inputs)[attended], **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_a_cache_equals_that_without(settings):
    model, ids = random_lm(), []
    for use_cache in (True, False):
        out = model.generate(
            **batch(), max_new_tokens=12, no_repeat_ngram_size=1, pad_token_id=0, use_cache=use_cache, **settings
        )
        ids.append(out.tolist())
    assert ids[0] == ids[1]


def test_texts_may_be_longer_than_the_longest_of_training():
    ids = batch()["input_ids"]
    short, long = (random_lm(max_seq_len=length) for length in (8, 2048))
    torch.testing.assert_close(logits_of(short, input_ids=ids), logits_of(long, input_ids=ids), **EXACT)


def test_embeddings_in_place_of_ids_and_the_last_logits_alone():
    model, ids = random_lm(), batch()["input_ids"]
    expected = logits_of(model, input_ids=ids)
    embedded = model.get_input_embeddings()(ids).detach()
    torch.testing.assert_close(logits_of(model, inputs_embeds=embedded), expected, **EXACT)
    torch.testing.assert_close(logits_of(model, input_ids=ids, logits_to_keep=2), expected[:, -2:], **CLOSE)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embedded)


def test_hidden_states_of_all_layers_are_given_on_request():
    model = random_lm()
    states = model(**batch(), output_hidden_states=True).hidden_states
    assert len(states) == model.config.n_layers + 1
    torch.testing.assert_close(states[0], model.transformer.wte(batch()["input_ids"]), **EXACT)
    torch.testing.assert_close(model.lm_head(states[-1]), model(**batch()).logits, **EXACT)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_are_the_same_when_activations_are_recomputed(use_reentrant):
    expected, model = gradients(random_lm()), random_lm()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(model), expected, **EXACT)


@pytest.mark.parametrize("rate", ["attn_pdrop", "resid_pdrop", "emb_pdrop"])
def test_each_dropout_acts_in_training_alone(rate):
    model, plain = random_lm(**{rate: 0.5}), random_lm()
    torch.testing.assert_close(logits_of(model, **batch()), logits_of(plain, **batch()), **EXACT)
    assert not torch.allclose(logits_of(model.train(), **batch()), logits_of(plain, **batch()), atol=1e-2)


def test_queries_under_autocast_share_one_mask_of_their_own_type():
    model, kept = random_lm(n_heads=2).train(), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        model(torch.randint(END_OF_CHUNK_ID, (1, LONG)))
    masks = [tensor for tensor in kept if tensor.shape == (1, 2, LONG, LONG)]
    assert [mask.dtype for mask in masks] == [torch.bfloat16] * 2
    assert len({mask.data_ptr() for mask in masks}) == 1


def test_what_is_saved_loads_to_the_bit_under_the_released_names(tmp_path):
    model = random_lm()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == dict(model.named_parameters()).keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is MosaicGPTForCausalLM
    assert again.lm_head.weight is again.transformer.wte.weight
    torch.testing.assert_close(logits_of(again, **batch()), logits_of(model, **batch()), **EXACT)


def test_a_folder_that_brings_its_own_code_loads_without_it(tmp_path):
    model = random_lm()
    write_folder(tmp_path / "released", model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "released", trust_remote_code=False, dtype=torch.float32)
    assert type(again) is MosaicGPTForCausalLM
    torch.testing.assert_close(logits_of(again.eval(), **batch()), logits_of(model, **batch()), **EXACT)


@pytest.mark.parametrize(
    ("biases", "per_layer"), [({"no_bias": False}, 8), ({"no_bias": True, "qk_ln_bias": True}, 2)], ids=["all", "qk"]
)
def test_biases_load_where_the_weights_hold_them(biases, per_layer, tmp_path):
    model = random_lm(**biases)
    named = dict(model.named_parameters())
    assert sum(name.startswith("transformer.blocks.0.") and name.endswith("bias") for name in named) == per_layer
    write_folder(tmp_path / "released", model, no_bias=biases["no_bias"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "released", dtype=torch.float32).eval()
    assert dict(again.named_parameters()).keys() == named.keys()
    torch.testing.assert_close(logits_of(again, **batch()), logits_of(model, **batch()), **EXACT)


@pytest.mark.parametrize("size", [VOCABULARY - 10, VOCABULARY + 10])
def test_the_vocabulary_grows_and_shrinks_with_the_output_tied_to_the_input(size):
    model, ids = random_lm(), batch()["input_ids"] % 50
    expected = logits_of(model, input_ids=ids)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == size
    actual = logits_of(model, input_ids=ids)
    assert actual.shape[-1] == size
    kept = min(size, VOCABULARY)
    torch.testing.assert_close(actual[..., :kept], expected[..., :kept], **CLOSE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alibi": False}, "alibi=False"),
        ({"prefix_lm": True}, "prefix_lm=True"),
        ({"attn_uses_sequence_id": True}, "attn_uses_sequence_id=True"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale='inv_sqrt_d_model'"),
        ({"embedding_fraction": 0.5}, "embedding_fraction=0.5"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"alibi": False, "prefix_lm": True}, "alibi=False, prefix_lm=True is not supported"),
        ({"n_heads": 5}, "d_model=32 cannot be split into n_heads=5 heads"),
    ],
)
def test_settings_that_it_does_not_have_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        random_lm(**setting)


def test_a_flamingo_of_it_sees_its_images_and_generates_the_same_with_and_without_a_cache(tiny_vision):
    visual, lm = create_vision_encoder(str(tiny_vision), "none")[0], random_lm()
    assert find_decoder_layers(lm) == "transformer.blocks"
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ids[0, 2] = ids[1, 7] = ids[1, 12] = IMAGE_ID
    expected = logits_of(lm, **inputs)
    model = Flamingo(visual, lm, END_OF_CHUNK_ID, IMAGE_ID, vis_dim=visual_width(visual)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(random_images(2, 2), ids, mask).logits, expected, **EXACT)
        for block in model.gated_cross_attn_layers:
            nn.init.constant_(block.attn_gate, 1.0)
        first, second = (model(random_images(2, 2, seed), ids, mask).logits for seed in (0, 1))
        supervised = mask.bool() & (ids != IMAGE_ID)
        out = model(random_images(2, 2), ids, mask, supervised=supervised)
    after_image = (ids == IMAGE_ID).cumsum(dim=1) > 0
    differs = (first - second).abs().amax(dim=-1) > 1e-4
    assert differs[mask.bool()].tolist() == after_image[mask.bool()].tolist()
    expected = nn.functional.cross_entropy(
        first[:, :-1][supervised[:, 1:]], ids[:, 1:][supervised[:, 1:]], reduction="none"
    )
    torch.testing.assert_close(out.losses, expected, **CLOSE)

    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "no_repeat_ngram_size": 1, "pad_token_id": 0, "num_beams": 2}
    with_cache, without = (
        model.generate(random_images(2, 2), ids, mask, use_cache=use_cache, **settings) for use_cache in (True, False)
    )
    assert with_cache.tolist() == without.tolist()
