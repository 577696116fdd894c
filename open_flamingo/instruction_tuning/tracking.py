"""Where a run is seen: train.log, the terminal, TensorBoard, Weights & Biases. Off rank 0 all of it is silent."""

import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from open_flamingo.instruction_tuning.config import RunConfig

LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

WANDB_ID = "wandb_id"
"""The file of a run folder that holds the id of its Weights & Biases run."""


class Tracker:
    """Takes the numbers, texts and pictures of a run; this one keeps nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag."""

    def text(self, tag: str, text: str, step: int) -> None:
        """A text of several lines."""

    def images(self, tag: str, images: Tensor, step: int) -> None:
        """Pictures (N, 3, H, W), from 0 to 1."""

    def checkpoint(self, _path: Path) -> None:
        """A checkpoint that was written."""

    def close(self) -> None:
        """The end of the run."""


class TensorBoardTracker(Tracker):
    """Writes TensorBoard events."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """What an earlier start wrote for `first_step` and later counts no more."""
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._writing():
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        with self._writing():
            self.writer.add_text(tag, f"<pre>{text}</pre>", step)

    def images(self, tag: str, images: Tensor, step: int) -> None:
        with self._writing():
            if len(images):
                self.writer.add_images(tag, images, step)

    def checkpoint(self, _path: Path) -> None:
        with self._writing():
            self.writer.flush()  # what is gone on from comes after what was logged before it

    def close(self) -> None:
        with self._writing():
            self.writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"the events in {self.folder} could not be written: {error}") from error


class WandbTracker(Tracker):
    """Writes a Weights & Biases run, which a run that goes on goes on with."""

    def __init__(self, run: RunConfig, config: Mapping[str, Any]) -> None:
        """Raises ValueError where the library is not installed."""
        try:
            import wandb
        except ImportError as error:
            raise ValueError("--report_to_wandb needs the library wandb: pip install wandb") from error
        self.wandb = wandb
        self.saves_checkpoints = run.save_checkpoints_to_wandb
        id_file = run.run_name / WANDB_ID
        run_id = id_file.read_text(encoding="utf-8") if id_file.exists() else secrets.token_hex(4)
        id_file.write_text(run_id, encoding="utf-8")
        self.run = wandb.init(
            project=run.wandb_project,
            entity=run.wandb_entity,
            name=run.run_name.name,
            dir=str(run.run_name),
            id=run_id,
            resume="allow",
            config=json.loads(json.dumps(config, default=str)),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self.run.log({tag: self.wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def images(self, tag: str, images: Tensor, step: int) -> None:
        if len(images):
            self.run.log({tag: [self.wandb.Image(image) for image in images]}, step=step)

    def checkpoint(self, _path: Path) -> None:
        if self.saves_checkpoints:
            self.run.save(str(_path), base_path=str(_path.parent))

    def close(self) -> None:
        self.run.finish()


class Trackers(Tracker):
    """Hands everything to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.scalars(values, step)

    def text(self, tag: str, text: str, step: int) -> None:
        for tracker in self.trackers:
            tracker.text(tag, text, step)

    def images(self, tag: str, images: Tensor, step: int) -> None:
        for tracker in self.trackers:
            tracker.images(tag, images, step)

    def checkpoint(self, _path: Path) -> None:
        for tracker in self.trackers:
            tracker.checkpoint(_path)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def log_to_terminal(*, is_main: bool) -> None:
    """Log to stderr, on the main rank from INFO up, elsewhere from WARNING up."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(LOG_FORMAT)
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    root = logging.getLogger("open_flamingo")
    root.handlers = [terminal]
    root.setLevel(logging.DEBUG)
    root.propagate = False


def open_run(run: RunConfig, config: Mapping[str, Any], *, first_step: int, is_main: bool) -> Tracker:
    """Start the run's files in its folder: train.log, config.json, tensorboard/."""
    if not is_main:
        return Tracker()
    folder = run.run_name
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(LOG_FORMAT)
    logging.getLogger("open_flamingo").addHandler(file)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    tensorboard = TensorBoardTracker(folder / "tensorboard", first_step)
    return Trackers([tensorboard, WandbTracker(run, config)]) if run.report_to_wandb else tensorboard


def refuse_unwritable(folder: Path) -> None:
    """Raise ValueError if `folder` cannot be made or written, before hours of work are spent on it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"the run folder {folder} cannot be written ({nearest}): choose another with --run_name")
