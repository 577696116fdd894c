"""The sizes of benchmarks/train.py: the models' parts, the batches of a step, and random ones of each."""

# b batch, t tokens, T slots for images, C H W an image

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from open_flamingo.src.vision import create_vision_encoder

RUN = 32
"""Questions and answers take turns of this many tokens: half of the text is supervised."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of every model here."""

    width: int = 576
    mlp: int = 1536
    layers: int = 12
    heads: int = 9
    vocabulary: int = 8192
    every: int = 4
    """A gated block for every so many layers; its feed-forward has as many weights in ours as in Idefics."""
    vision_width: int = 384
    vision_layers: int = 6
    vision_heads: int = 6
    pixels: int = 224
    patch: int = 32
    resampler_depth: int = 6
    resampler_latents: int = 64
    resampler_heads: int = 8
    head_width: int = 64


SIZES = Sizes()
MEDIA_ID, END_ID = SIZES.vocabulary - 1, SIZES.vocabulary - 2


@dataclass(frozen=True)
class Case:
    """The batch of a step."""

    batch: int
    tokens: int
    slots: int
    """`--max_img`: what a loader of padded samples makes room for."""
    images: int
    """Real images of a sample."""


CASES = {"a": Case(2, 512, 8, 2), "b": Case(2, 512, 8, 8), "c": Case(2, 2048, 16, 16)}


def text(case: Case) -> tuple[Tensor, Tensor]:
    """Random ids (b, t) with the images at equal distances, and where they are supervised (b, t)."""
    ids = torch.randint(0, END_ID, (case.batch, case.tokens))
    ids[:, :: case.tokens // case.images] = MEDIA_ID
    supervised = (torch.arange(case.tokens) // RUN % 2 == 1).expand(case.batch, -1)
    return ids, supervised


def pictures(case: Case, slots: int) -> Tensor:
    """Samples of `slots` images each (b, T, 1, C, H, W)."""
    return torch.randn(case.batch, slots, 1, 3, SIZES.pixels, SIZES.pixels)


def language_model() -> LlamaForCausalLM:
    """A random LLaMA."""
    config = LlamaConfig(
        hidden_size=SIZES.width,
        intermediate_size=SIZES.mlp,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.heads,
        vocab_size=SIZES.vocabulary,
    )
    return LlamaForCausalLM(config)


def tower() -> nn.Module:
    """A random ViT of open_clip, from a config file of its own."""
    vision = {
        "image_size": SIZES.pixels,
        "patch_size": SIZES.patch,
        "width": SIZES.vision_width,
        "layers": SIZES.vision_layers,
        "head_width": SIZES.vision_width // SIZES.vision_heads,
    }
    smallest = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark-vit.json"
        path.write_text(json.dumps({"embed_dim": SIZES.width, "vision_cfg": vision, "text_cfg": smallest}))
        return create_vision_encoder(str(path), "none")[0]
