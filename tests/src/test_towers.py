"""Every kind of open_clip tower works as it comes: tokens, width, training, generation, checkpointing."""

import json
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import timm
import torch
from einops import rearrange
from test_families import (
    END_OF_CHUNK_ID,
    IMAGE_ID,
    assert_checkpointing_changes_nothing,
    assert_generation_does_not_depend_on_the_cache,
    assert_training_lowers_the_loss,
    random_lm,
    set_gates,
    training_batch,
)
from tiny import EXACT, FLOATS
from torch import Tensor, nn

from open_flamingo import Flamingo
from open_flamingo.src.factory import freeze
from open_flamingo.src.vision import create_vision_encoder, visual_tokens, visual_width

WIDTH = 64
NATIVE_VIT = {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
NAFLEX = {"patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "pos_embed_grid_size": (4, 4)}


@dataclass
class Tower:
    """A tiny tower, and where its last block stands, so that its tokens can be had without our code."""

    last_block: str
    shape: tuple[int, int]
    """Visual tokens of an image, and their width."""
    config: dict[str, Any] = field(default_factory=dict)
    """What open_clip's config says of it."""
    timm_model: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)
    """What makes the timm model tiny."""
    prefix: int = 0
    """Class and register tokens before the patches."""
    layout: str = "N v d"
    """Of what the last block puts out."""
    size: int = 32
    clip_config: dict[str, Any] = field(default_factory=dict)
    """What open_clip's config says beside the tower."""


def _native(**config: Any) -> Tower:
    return Tower("transformer.resblocks.1", (16, WIDTH), NATIVE_VIT | config, prefix=1)


def _timm(timm_model: str, sizes: dict[str, Any], prefix: int) -> Tower:
    return Tower("trunk.blocks.1", (16, WIDTH), {"timm_pool": ""}, timm_model, sizes, prefix)


def _grid(timm_model: str, last_block: str, shape: tuple[int, int], layout: str = "N d H W", **sizes: Any) -> Tower:
    return Tower(f"trunk.{last_block}", shape, {"timm_pool": "avg"}, timm_model, sizes, layout=layout, size=64)


TOWERS = {
    "ViT": _native(),
    "ViT, QuickGELU": replace(_native(), clip_config={"quick_gelu": True}),
    "ViT, attentional pool": _native(attentional_pool=True, attn_pooler_heads=4, output_tokens=True),
    "SigLIP": _timm("vit_base_patch16_siglip_224", TIMM_VIT, prefix=0),
    "SigLIP 2 NaFlex": _timm("naflexvit_base_patch16_siglip", NAFLEX, prefix=0),
    "NaFlex, register": _timm("naflexvit_so150m2_patch16_reg1_gap", NAFLEX, prefix=1),
    "EVA02": _timm("eva02_base_patch14_224", TIMM_VIT, prefix=1),
    "EVA02 CLIP": _timm("eva02_base_patch16_clip_224", TIMM_VIT, prefix=1),
    "Perception Encoder": _timm("vit_pe_core_base_patch16_224", TIMM_VIT, prefix=1),
    "DINOv2": _timm("vit_base_patch14_dinov2", TIMM_VIT, prefix=1),
    "DINOv2, registers": _timm("vit_base_patch14_reg4_dinov2", TIMM_VIT, prefix=5),
    "DINOv3": _timm("vit_base_patch16_dinov3", TIMM_VIT, prefix=5),
    "ViT, registers alone": _timm("vit_medium_patch16_reg4_gap_256", TIMM_VIT, prefix=4),
    "ConvNeXt": _grid("convnext_tiny", "stages.3", (4, WIDTH), depths=(1, 1, 1, 1), dims=(8, 16, 32, WIDTH)),
    "EfficientNet": _grid("test_efficientnet", "blocks", (4, 64)),
    "ResNet": _grid("test_resnet", "layer4", (4, 96)),
    "Swin": _grid(
        "swin_base_patch4_window7_224",
        "layers.3",
        (4, WIDTH),
        "N H W d",
        img_size=64,
        window_size=2,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
    ),
    "ModifiedResNet": Tower(
        "layer4", (4, 256), {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64}, layout="N d H W", size=64
    ),
}

every_tower = pytest.mark.parametrize("tower", TOWERS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tower's model with open gates, in evaluation mode, built once; tests that change it copy it."""

    @cache
    def build(tower: str) -> Flamingo:
        made = TOWERS[tower]
        name = f"tiny-{list(TOWERS).index(tower)}"
        config = {"image_size": made.size, **made.config}
        if made.timm_model:
            config |= {"timm_model_name": _register(name, made), "timm_proj": "linear"}
        text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
        path = tmp_path_factory.mktemp("towers") / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": config, "text_cfg": text, **made.clip_config}))
        torch.manual_seed(0)
        visual, _ = create_vision_encoder(str(path), "none")
        _enliven(visual, images_of(tower, 4, seed=1))
        model = Flamingo(
            visual,
            random_lm("llama 2"),
            END_OF_CHUNK_ID,
            IMAGE_ID,
            vis_dim=visual_width(visual),
            resampler_depth=2,
            resampler_latents=8,
        ).eval()
        freeze(model, freeze_lm_embeddings=True)
        set_gates(model, 1.0)
        return model

    return build


def _register(name: str, tower: Tower) -> str:
    """Make the tiny variant known to timm: open_clip passes it a name alone."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return timm.create_model(tower.timm_model, pretrained=pretrained, **tower.sizes, **kwargs)

    create.__name__ = name
    timm.models.register_model(create)
    return name


def _enliven(visual: nn.Module, images: Tensor) -> None:
    """Norms and layer scales that change what passes: at their initial values some would hide a mistake."""
    for name, parameter in visual.named_parameters():
        if parameter.dim() == 1 and name.endswith(("weight", "gamma")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    visual_tokens(visual.train(), images)
    visual.eval()


def images_of(tower: str, count: int, seed: int = 0) -> Tensor:
    """Images (count, 3, H, W) of the size of `tower`."""
    size = TOWERS[tower].size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def slots(tower: str, seed: int = 0) -> Tensor:
    """The images of the batch, (2, 2, 1, 3, H, W)."""
    images = images_of(tower, 4, seed)
    return images.view(2, 2, 1, *images.shape[1:])


@every_tower
def test_tokens_are_the_output_of_the_last_block_without_class_and_register_tokens(tower, built):
    visual, made = built(tower).vision_encoder, TOWERS[tower]
    outputs = []
    handle = visual.get_submodule(made.last_block).register_forward_hook(lambda _m, _args, out: outputs.append(out))
    with torch.no_grad():
        visual(images_of(tower, 3))
    handle.remove()
    (expected,) = outputs
    if "H" in made.layout:
        expected = rearrange(expected, f"{made.layout} -> N (H W) d")
    tokens = visual_tokens(visual, images_of(tower, 3))
    torch.testing.assert_close(tokens, expected[:, made.prefix :], **EXACT)
    assert tokens.shape == (3, *made.shape)
    assert visual_width(visual) == made.shape[-1]


@every_tower
def test_an_image_has_the_same_tokens_alone_and_among_others(tower, built):
    visual, images = built(tower).vision_encoder, images_of(tower, 3)
    one_by_one = torch.cat([visual_tokens(visual, image[None]) for image in images])
    torch.testing.assert_close(one_by_one, visual_tokens(visual, images), **FLOATS)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 0.01


@every_tower
def test_training_lowers_the_loss_and_leaves_the_tower_as_it_was(tower, built):
    model = deepcopy(built(tower))
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    assert_training_lowers_the_loss(model, {**training_batch(), "vision_x": slots(tower)})
    assert all(p.grad is None for p in model.vision_encoder.parameters())
    before = built(tower).vision_encoder.state_dict()
    torch.testing.assert_close(dict(model.vision_encoder.state_dict()), dict(before), **EXACT)


@every_tower
def test_generation_is_the_same_with_and_without_a_cache(tower, built):
    assert_generation_does_not_depend_on_the_cache(built(tower), slots(tower), beams=1)


@every_tower
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(tower, built):
    assert_checkpointing_changes_nothing(deepcopy(built(tower)), {**training_batch(), "vision_x": slots(tower)})


@pytest.mark.parametrize("tower", ["EfficientNet", "ResNet", "Swin", "ModifiedResNet"])
def test_in_training_mode_the_tower_still_sees_an_image_as_it_always_does(tower, built):
    """These have batch norm or drop paths, which training mode turns on."""
    model, images = deepcopy(built(tower)), images_of(tower, 3)
    expected = visual_tokens(model.vision_encoder, images)
    model.train()
    torch.testing.assert_close(visual_tokens(model.vision_encoder, images), expected, **FLOATS)
