"""The released models at full size, on the meta device: names, shapes and numbers of what their checkpoints hold."""

from functools import cache

import open_clip
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MptConfig, PreTrainedConfig

from open_flamingo import Flamingo
from open_flamingo.src.factory import freeze
from open_flamingo.src.mosaic_gpt import MosaicGPTConfig
from open_flamingo.src.vision import visual_width
from open_flamingo.src.weights import family_of, own_state, saved_name

ROWS = 50280
"""The tokens of the GPT-NeoX tokenizer, 50277, and the three that Flamingo adds."""
VISUAL, INNER, LATENTS = 1024, 512, 64
MODELS = {
    "3B": (MosaicGPTConfig(d_model=2048, n_layers=24, n_heads=16, vocab_size=50432, max_seq_len=2048), 1),
    "4B": (
        GPTNeoXConfig(
            hidden_size=2560,
            num_hidden_layers=32,
            num_attention_heads=32,
            intermediate_size=10240,
            vocab_size=50432,
            tie_word_embeddings=False,
        ),
        2,
    ),
    "9B": (MptConfig(d_model=4096, n_layers=32, n_heads=32, vocab_size=50432), 4),
    "9B v1": (LlamaConfig(), 4),
}
LAYERS = {"3B": "transformer.blocks", "4B": "gpt_neox.layers", "9B": "transformer.blocks", "9B v1": "model.layers"}
EMBEDDINGS = {
    "3B": {"transformer.wte.weight": (ROWS, 2048)},
    "4B": {"gpt_neox.embed_in.weight": (ROWS, 2560), "embed_out.weight": (ROWS, 2560)},
    "9B": {"transformer.wte.weight": (ROWS, 4096)},
    "9B v1": {"model.embed_tokens.weight": (32003, 4096), "lm_head.weight": (32003, 4096)},
}
TRAINED = {"3B": 1_046_992_944, "4B": 1_089_480_736, "9B": 1_384_781_840}
"""Resampler, blocks and input embeddings."""


@cache
def build(name: str) -> Flamingo:
    """The model of a released checkpoint, without storage."""
    config, every = MODELS[name]
    with torch.device("meta"):
        lang_encoder = AutoModelForCausalLM.from_config(config)
        lang_encoder.resize_token_embeddings(32003 if name == "9B v1" else ROWS, mean_resizing=False)
        visual = open_clip.create_model("ViT-L-14", load_weights=False, device="meta").visual
        return Flamingo(visual, lang_encoder, ROWS - 3, ROWS - 2, visual_width(visual), every)


def feed_forward(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    norms = {f"{prefix}.0.weight": (width,), f"{prefix}.0.bias": (width,)}
    return norms | {f"{prefix}.1.weight": (4 * width, width), f"{prefix}.3.weight": (width, 4 * width)}


def attention(prefix: str, width: int, *norms: str) -> dict[str, tuple[int, ...]]:
    projections = {"to_q": (INNER, width), "to_kv": (2 * INNER, VISUAL), "to_out": (width, INNER)}
    shapes = {f"{prefix}.{name}.weight": shape for name, shape in projections.items()}
    return shapes | {f"{prefix}.{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}


def expected(config: PreTrainedConfig, every: int, layers: str) -> dict[str, tuple[int, ...]]:
    """The resampler's and the blocks' names and shapes, written out from the tables of the specification."""
    names = {
        "perceiver.latents": (LATENTS, VISUAL),
        "perceiver.norm.weight": (VISUAL,),
        "perceiver.norm.bias": (VISUAL,),
    }
    for i in range(6):
        names |= attention(f"perceiver.layers.{i}.0", VISUAL, "norm_media", "norm_latents")
        names |= feed_forward(f"perceiver.layers.{i}.1", VISUAL)
    for i in range(every - 1, config.num_hidden_layers, every):
        block = f"lang_encoder.{layers}.{i}.gated_cross_attn_layer"
        names |= attention(f"{block}.attn", config.hidden_size, "norm") | feed_forward(
            f"{block}.ff", config.hidden_size
        )
        names |= {f"{block}.attn_gate": (1,), f"{block}.ff_gate": (1,)}
    return names


@pytest.mark.parametrize("name", MODELS)
def test_resampler_and_blocks_have_the_released_names_and_shapes(name):
    config, every = MODELS[name]
    own = {key: tuple(t.shape) for key, t in own_state(build(name)).items() if not key.startswith("vision_encoder.")}
    assert own == expected(config, every, LAYERS[name])


@pytest.mark.parametrize(("name", "blocks"), [("3B", 24), ("4B", 16), ("9B", 8), ("9B v1", 8)])
def test_there_are_as_many_blocks_as_the_checkpoint_holds(name, blocks):
    assert len(build(name).gated_cross_attn_layers) == blocks


@pytest.mark.parametrize("name", MODELS)
def test_the_embeddings_have_a_row_for_each_token(name):
    model = build(name)
    shapes = {saved_name(key, family_of(model)): tuple(p.shape) for key, p in model.named_parameters()}
    assert {key: shapes[f"lang_encoder.{key}"] for key in EMBEDDINGS[name]} == EMBEDDINGS[name]


@pytest.mark.parametrize("name", TRAINED)
def test_resampler_blocks_and_input_embeddings_train(name):
    model = build(name)
    freeze(model, freeze_lm_embeddings=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED[name]
    rows, width = next(iter(EMBEDDINGS[name].values()))
    config, every = MODELS[name]
    sizes = [torch.Size(shape).numel() for shape in expected(config, every, LAYERS[name]).values()]
    assert TRAINED[name] == sum(sizes) + rows * width
