"""The fixtures of the sources of instruction data: a few records of each as published, and what they become."""

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from instruction_dataset import convert

FIXTURES = Path(__file__).parent / "instruction_dataset" / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
SIZE = (24, 16)


def convert_fixture(name: str, folder: Path) -> Path:
    """Convert a fixture by the command, under a new `folder`: the data file; images lie in `images`, made ones in `made`."""
    images = write_images(folder / "images", listed(name, "images"))
    flags = [*listed(name, "arguments")]
    if (FIXTURES / name / "images.json").exists():
        flags += ["--image_root", str(images)]
    if (FIXTURES / name / "made.json").exists():
        flags += ["--image_output", str(folder / "made")]
    output = folder / f"{name}.json"
    source = FIXTURES / name / "source"
    assert convert.main([name, "--source", str(source), "--output", str(output), *flags]) == 0
    return output


def listed(name: str, what: str) -> list[str] | Mapping[str, list[int]]:
    """A JSON file of a fixture; an empty list where it has none."""
    path = FIXTURES / name / f"{what}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_images(folder: Path, wanted: list[str] | Mapping[str, list[int]]) -> Path:
    """Pictures at paths in a folder, of a small size where none is given; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, SIZE)
    for path, size in sizes.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.lower().endswith(".png") else "JPEG"
        Image.new("RGB", tuple(size), (200, 80, 40)).save(folder / path, kind)
    return folder
