"""How an open_clip tower is named, loaded and frozen, and when it computes with QuickGELU; its tokens: test_towers."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_tags
from PIL import Image
from tiny import EXACT
from torch import nn

from open_flamingo.src.vision import create_vision_encoder, visual_tokens


def quick_gelus(visual: nn.Module) -> int:
    return sum(isinstance(m, open_clip.transformer.QuickGELU) for m in visual.modules())


@pytest.fixture(scope="module")
def tiny_weights(tiny_vision, tmp_path_factory) -> Path:
    """A weights file for the tiny tower."""
    torch.manual_seed(0)
    open_clip.add_model_config(tiny_vision)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(open_clip.create_model(tiny_vision.stem).state_dict(), path)
    return path


def test_the_tower_is_frozen_in_evaluation_mode_and_gives_tokens_without_gradients(tiny_vision):
    visual, _ = create_vision_encoder(str(tiny_vision), "none")
    assert not visual.training
    assert not any(p.requires_grad for p in visual.parameters())
    assert not visual_tokens(visual, torch.randn(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_images_of_any_type_are_cast_to_the_type_of_the_tower(tiny_vision):
    visual = create_vision_encoder(str(tiny_vision), "none")[0].to(torch.bfloat16)
    assert visual_tokens(visual, torch.randn(1, 3, 32, 32)).dtype == torch.bfloat16


def test_the_transform_is_that_of_the_tower(tiny_vision):
    _, transform = create_vision_encoder(str(tiny_vision), "none")
    pixels = transform(Image.new("RGB", (50, 40), "white"))
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    torch.testing.assert_close(pixels, ((1 - mean) / std).expand(3, 32, 32))


def test_weights_from_a_file_are_the_same_each_time(tiny_vision, tiny_weights):
    images = torch.randn(1, 3, 32, 32)
    first, second = (create_vision_encoder(str(tiny_vision), str(tiny_weights))[0] for _ in range(2))
    torch.testing.assert_close(visual_tokens(first, images), visual_tokens(second, images), **EXACT)


@pytest.mark.parametrize("tag", ["openai", "any-tag"])
def test_a_folder_brings_its_own_weights_whatever_the_tag(tiny_vision, tiny_weights, tmp_path, tag):
    model_config = json.loads(tiny_vision.read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config, "preprocess_cfg": {}}))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(tiny_weights.read_bytes())
    images = torch.randn(1, 3, 32, 32)
    from_folder, _ = create_vision_encoder(str(tmp_path), tag)
    from_file, _ = create_vision_encoder(str(tiny_vision), str(tiny_weights))
    torch.testing.assert_close(visual_tokens(from_folder, images), visual_tokens(from_file, images), **EXACT)


@pytest.mark.parametrize(("quick_gelu", "expected"), [(None, 0), (False, 0), (True, 2)])
def test_quick_gelu_is_off_unless_asked_for(tiny_vision, quick_gelu, expected):
    visual, _ = create_vision_encoder(str(tiny_vision), "none", quick_gelu=quick_gelu)
    assert quick_gelus(visual) == expected


def test_a_config_with_quick_gelu_keeps_it(tiny_vision, tmp_path):
    path = tmp_path / "tiny-test-vit-quickgelu.json"
    path.write_text(json.dumps({**json.loads(tiny_vision.read_text()), "quick_gelu": True}))
    visual, _ = create_vision_encoder(str(path), "none")
    assert quick_gelus(visual) == 2


@pytest.mark.parametrize(
    ("tag", "quick_gelu", "expected"), [("openai", None, 2), ("openai", False, 0), ("laion", None, 0)]
)
def test_the_tag_openai_turns_quick_gelu_on(
    tiny_vision, tiny_weights, tmp_path, monkeypatch, tag, quick_gelu, expected
):
    tags = {name: {"url": tiny_weights.as_uri()} for name in ("openai", "laion")}
    monkeypatch.setitem(open_clip_tags._PRETRAINED, tiny_vision.stem, tags)
    visual, _ = create_vision_encoder(str(tiny_vision), tag, quick_gelu=quick_gelu, cache_dir=str(tmp_path))
    assert quick_gelus(visual) == expected


@pytest.mark.parametrize(
    ("path", "weights", "message"),
    [
        (
            "ViT-Nope",
            "openai",
            "unknown vision encoder 'ViT-Nope': give an open_clip model name, a config JSON or a folder",
        ),
        (
            "ViT-B-32",
            "no-such-tag",
            "vision encoder 'ViT-B-32' with weights 'no-such-tag': .* not a known tag or valid file",
        ),
        ("no-such-config.json", "none", "vision encoder config no-such-config.json does not exist"),
    ],
)
def test_unknown_names_are_refused_in_one_sentence(path, weights, message):
    with pytest.raises(ValueError, match=message) as refusal:
        create_vision_encoder(path, weights)
    assert len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config file missing: .*open_clip_config\.json"):
        create_vision_encoder(str(tmp_path), "none")
