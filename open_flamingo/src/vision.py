"""Any open_clip tower as a source of visual tokens: the last block's output before the final norm, class token dropped."""

# N images, v visual tokens, d width, H W the grid of a convolutional tower

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from einops import rearrange
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"


def create_vision_encoder(
    path: str, pretrained: str = "openai", *, quick_gelu: bool | None = None, cache_dir: str | None = None
) -> tuple[nn.Module, Callable]:
    """The frozen image tower of an open_clip model, and its own image transform.

    `path` is a name ("ViT-L-14-336"), an open_clip config JSON, or a folder with `open_clip_config.json` and weights;
    `pretrained` a tag, a weights file, or "none" for random weights; a folder's own weights are used whatever the tag.
    `quick_gelu` is on for the tag "openai" unless given: those weights were trained with it. Raises ValueError for an
    unknown name, tag or file.
    """
    name, weights = _resolve(path, pretrained)
    if quick_gelu is None:
        quick_gelu = weights == "openai"
    try:
        clip = open_clip.create_model(
            name,
            pretrained=weights,
            load_weights=pretrained != NO_WEIGHTS,
            force_quick_gelu=quick_gelu,
            pretrained_text=False,
            cache_dir=cache_dir,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"vision encoder {path!r} with weights {pretrained!r}: {error}") from error
    visual = clip.visual.requires_grad_(False).eval()
    if pretrained == NO_WEIGHTS:
        logger.warning("the vision encoder %s has random weights", path)
    if not _has_tokens(visual):
        visual.to(memory_format=torch.channels_last)  # convolutions run in this layout, so keep from converting to it
    return visual, image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)


def _resolve(path: str, pretrained: str) -> tuple[str, str | None]:
    """An open_clip model name and weights for `path`, registering a config file with open_clip."""
    weights = None if pretrained == NO_WEIGHTS else pretrained
    if Path(path).is_dir():
        return f"local-dir:{path}", None
    if path.endswith(".json"):
        if not Path(path).is_file():
            raise ValueError(f"vision encoder config {path} does not exist")
        open_clip.add_model_config(path)
        return Path(path).stem, weights
    if path not in open_clip.list_models() and ":" not in path:
        raise ValueError(f"unknown vision encoder {path!r}: give an open_clip model name, a config JSON or a folder")
    return path, weights


@torch.no_grad()
def visual_tokens(visual: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, H, W) to visual tokens (N, v, d), never through the final norm (open_clip <= 2.20 did the same)."""
    fmt = "NLC" if _has_tokens(visual) else "NCHW"
    dtype = next(visual.parameters()).dtype
    features = visual.forward_intermediates(  # type: ignore[operator]
        images.to(dtype), indices=1, intermediates_only=True, normalize_intermediates=False, output_fmt=fmt
    )["image_intermediates"][0]
    return features if fmt == "NLC" else rearrange(features, "N d H W -> N (H W) d")


@torch.no_grad()
def visual_width(visual: nn.Module) -> int:
    """The width d of the tower's visual tokens, found by running it once on a blank image."""
    size: Any = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return visual_tokens(visual, torch.zeros(1, 3, height, width)).shape[-1]


def _has_tokens(visual: nn.Module) -> bool:
    """True for towers of tokens (ViT), False for towers of a grid (ConvNeXt, EfficientNet, ResNet)."""
    trunk = getattr(visual, "trunk", visual)
    return hasattr(trunk, "transformer") or (hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed"))
