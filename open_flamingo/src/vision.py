"""Any open_clip tower as a source of visual tokens: the last block's output before the final norm, class token dropped."""

# N images, v visual tokens, d width, H W the grid of a convolutional tower

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from einops import rearrange
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"

VISUAL_TOKENS = "last block, before the final norm, without class token"
"""What a tower's visual tokens are; recorded with saved models, since newer open_clip means others by default."""

CONFIG_FILE = "open_clip_config.json"


def create_vision_encoder(
    path: str,
    pretrained: str = "openai",
    *,
    quick_gelu: bool | None = None,
    cache_dir: str | None = None,
    load_weights: bool = True,
) -> tuple[nn.Module, Callable]:
    """The frozen image tower of an open_clip model, and its own image transform.

    `path` is a name ("ViT-L-14-336"), an open_clip config JSON, or a folder with `open_clip_config.json` and weights;
    `pretrained` a tag, a weights file, or "none" for random weights; a folder's own weights are used whatever the tag.
    `quick_gelu` is that of the config, and on for the tag "openai", unless given: those weights were trained with it.
    Without `load_weights` they are random as well, and none are looked for.
    Raises ValueError for an unknown name, tag or file, and where `quick_gelu` contradicts the tower.
    """
    name, weights = _resolve(path, pretrained)
    try:
        clip = open_clip.create_model(
            name,
            pretrained=weights if load_weights else None,
            load_weights=load_weights and pretrained != NO_WEIGHTS,
            device=torch.get_default_device(),
            force_quick_gelu=weights == "openai" if quick_gelu is None else quick_gelu,
            pretrained_text=False,
            cache_dir=cache_dir,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"vision encoder {path!r} with weights {pretrained!r}: {error}") from error
    visual = clip.visual.requires_grad_(False).eval()
    if quick_gelu is not None and quick_gelu != uses_quick_gelu(visual):
        raise ValueError(f"vision encoder {path!r} {'has no' if quick_gelu else 'is configured for'} QuickGELU")
    if pretrained == NO_WEIGHTS:
        logger.warning("the vision encoder %s has random weights, unless a checkpoint holds its own", path)
    if not _has_tokens(visual):
        visual.to(memory_format=torch.channels_last)  # convolutions run in this layout, so keep from converting to it
    return visual, image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)


def uses_quick_gelu(visual: nn.Module) -> bool:
    """Whether the tower computes QuickGELU."""
    return any(isinstance(module, QuickGELU) for module in visual.modules())


def save_vision_config(folder: Path, path: str, visual: nn.Module) -> None:
    """Write the config of the tower made from `path`, without weights: the folder is a `path` with weights "none"."""
    name, _ = _resolve(path, NO_WEIGHTS)
    if Path(path).is_dir():
        model = json.loads((Path(path) / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    else:
        model = open_clip.get_model_config(name)
    vision = model["vision_cfg"] | {"timm_model_pretrained": False}
    # open_clip builds no tower without a text tower: the smallest one, whatever it was
    text = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    model = {"embed_dim": model["embed_dim"], "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": model | {"quick_gelu": uses_quick_gelu(visual)}, "preprocess_cfg": visual.preprocess_cfg}
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


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
