"""The dependency arrows between the rooms of the code, and their size: what may import what, and how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("open_flamingo", "instruction_dataset", "demo")
LONGEST_FILE = 350
FORBIDDEN = {
    "open_flamingo/src": ("argparse", "wandb", "torch.distributed", "peft", "open_flamingo.instruction_tuning"),
    "open_flamingo/instruction_tuning": ("open_flamingo.serving", "api", "gradio", "gradio_demo"),
    "instruction_dataset": ("torch", "open_flamingo"),
    "instruction_dataset/sources": ("torch", "open_flamingo"),
    "demo": ("torch", "transformers", "open_flamingo"),
}
"""What the files of a room never import, neither the module itself nor anything below it."""
ALLOWED = {
    ("open_flamingo/src/lora.py", "peft"),
    ("instruction_dataset/check.py", "open_flamingo"),
    ("instruction_dataset/image_check.py", "open_flamingo"),
}
"""The files that do: `create_model_and_transforms(lora_weights=...)` puts an adapter around the language model, and the
checks of data and of images count and decode as training does."""


def files(room: str) -> list[Path]:
    """The Python files of a room and the rooms inside it."""
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a file, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports; `from a import b` may mean `a` or `a.b`."""
    names = set()
    for node in imports(path):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_arrow_points_back(room):
    assert files(room)
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(room)
        for name in imported(path)
        for forbidden in FORBIDDEN[room]
        if name == forbidden or name.startswith(f"{forbidden}.")
        if (str(path.relative_to(ROOT)), forbidden) not in ALLOWED
    }
    assert wrong == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package):
    relative = {
        str(path) for path in files(package) for i in imports(path) if isinstance(i, ast.ImportFrom) and i.level
    }
    assert relative == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long_to_read_in_one_sitting(package):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(package)}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_file_says_what_it_is(package):
    assert [path for path in files(package) if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []
