"""Where a run is seen: train.log, the terminal, TensorBoard. Off rank 0 all of it is silent."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


class Tracker(Protocol):
    """Takes the numbers and texts of a run."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def text(self, tag: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    """Takes everything, keeps nothing."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def text(self, tag: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, f"<pre>{text}</pre>", step)

    def close(self) -> None:
        self.writer.close()


def log_to_terminal(*, is_main: bool) -> None:
    """Log to stderr, on the main rank from INFO up, elsewhere from WARNING up."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(LOG_FORMAT)
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    root = logging.getLogger("open_flamingo")
    root.handlers = [terminal]
    root.setLevel(logging.DEBUG)
    root.propagate = False


def open_run(folder: Path, config: dict[str, Any], *, is_main: bool) -> Tracker:
    """Start the run's files in `folder`: train.log, config.json, tensorboard/."""
    if not is_main:
        return NoTracker()
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(LOG_FORMAT)
    logging.getLogger("open_flamingo").addHandler(file)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    return TensorBoardTracker(folder / "tensorboard")


def refuse_unwritable(folder: Path) -> None:
    """Raise ValueError if `folder` cannot be made or written, before hours of work are spent on it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"the run folder {folder} cannot be written ({nearest}): choose another with --run_name")
