"""The checkpoints of a run: what stands in them beside weights, which ones stay, and from which one a run goes on."""

import logging
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from open_flamingo.instruction_tuning.checkpoint import (
    PARTIAL,
    read_checkpoint,
    save_checkpoint,
    split_paths,
    state_to_save,
)
from open_flamingo.instruction_tuning.config import RunConfig
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.parallel import load_optimizer_state, optimizer_state
from open_flamingo.instruction_tuning.tracking import Tracker
from open_flamingo.instruction_tuning.trainer import Trainer

logger = logging.getLogger("open_flamingo.train")

BEST = "best.pt"
EPOCHS, STEPS = "checkpoint_[0-9]*.pt", "checkpoint_step*.pt"
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""How often torchrun (--max_restarts) or Slurm (--requeue) has started this command again."""

NEEDED = (
    "place",
    "step",
    "skipped",
    "best_loss",
    "optimizer_state_dict",
    "lr_scheduler_state_dict",
    "scaler_state_dict",
)


@dataclass(frozen=True)
class Place:
    """Where in the data a run is."""

    epoch: int = 0
    samples: int = 0
    """Of this epoch, that all ranks together have trained on."""

    def batches(self, batch_size: int, world_size: int) -> int:
        """The batches of each rank that these samples are; ValueError where they are not whole ones."""
        done, rest = divmod(self.samples, batch_size * world_size)
        if rest:
            raise ValueError(
                f"the run stopped after {self.samples} samples of epoch {self.epoch}, which batches of"
                f" {batch_size * world_size} (--batch_size times ranks) do not reach: continue with the same numbers"
            )
        return done


@dataclass(frozen=True)
class Saver:
    """Writes the checkpoints of a run."""

    trainer: Trainer
    run: RunConfig
    also: Sequence[nn.Module]
    """Frozen modules that are found nowhere else."""
    about: Mapping[str, Any]
    """What every checkpoint says: the configuration, the files below it."""
    tracker: Tracker

    def epoch(self, epoch: int) -> None:
        """Write the checkpoint of a finished epoch; with --delete_previous_checkpoint the one before goes."""
        path = epoch_path(self.run.run_name, epoch)
        self._write(path, Place(epoch + 1))
        if self.run.delete_previous_checkpoint:
            self._remove(p for p in checkpoints_of(self.run.run_name) if p != path)

    def step(self, place: Place) -> None:
        """Write the checkpoint of a step inside an epoch; of these the last --keep_last stay."""
        self._write(step_path(self.run.run_name, self.trainer.step), place)
        by_step = sorted(self.run.run_name.glob(STEPS), key=_step_of)
        self._remove(by_step[: -self.run.keep_last])

    def best(self, place: Place) -> None:
        """Write the checkpoint that answers best."""
        self._write(self.run.run_name / BEST, place)

    def _write(self, path: Path, place: Place) -> None:
        """All ranks gather what is sharded, the main one writes, all wait for it."""
        trainer = self.trainer
        state = state_to_save(trainer.model, self.also)
        optimizer = optimizer_state(trainer.optimizer)
        if trainer.ranks.is_main:
            save_checkpoint(
                path,
                state,
                epoch=place.epoch - (place.samples == 0),
                place=asdict(place),
                step=trainer.step,
                skipped=[trainer.skipped, trainer.skipped_in_a_row],
                best_loss=trainer.best_loss,
                optimizer_state_dict=optimizer,
                lr_scheduler_state_dict=trainer.scheduler.state_dict(),
                scaler_state_dict=trainer.scaler.state_dict(),
                **self.about,
            )
            logger.info("saved %s", path)
            self.tracker.checkpoint(path)
        trainer.ranks.barrier()

    def _remove(self, paths: Iterable[Path]) -> None:
        if self.trainer.ranks.is_main:
            for path in paths:
                path.unlink(missing_ok=True)


def epoch_path(run_folder: Path, epoch: int) -> Path:
    """Where an epoch's checkpoint lies."""
    return run_folder / f"checkpoint_{epoch}.pt"


def step_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run_folder / f"checkpoint_step{step}.pt"


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint_step"))


def restore(trainer: Trainer, paths: str) -> Place:
    """Take optimizer, schedule and counts from the last of `paths`; the place in the data to go on from."""
    path = split_paths(paths)[-1]
    payload = read_checkpoint(path)
    refuse_incomplete(path, payload)
    load_optimizer_state(trainer.optimizer, payload["optimizer_state_dict"])
    trainer.scheduler.load_state_dict(payload["lr_scheduler_state_dict"])
    trainer.scaler.load_state_dict(payload["scaler_state_dict"])
    trainer.step, trainer.best_loss = payload["step"], payload["best_loss"]
    trainer.skipped, trainer.skipped_in_a_row = payload["skipped"]
    return Place(**payload["place"])


def refuse_incomplete(path: Path | str, payload: Mapping[str, Any]) -> None:
    """Raise ValueError for the content of a file that a run cannot go on from."""
    if missing := [name for name in NEEDED if name not in payload]:
        raise ValueError(
            f"checkpoint {path} lacks {missing[0]!r}: --continue_training needs one written by this command"
        )


def is_restarted() -> bool:
    """Whether torchrun or Slurm has started this command again."""
    return any(int(os.environ.get(name) or 0) for name in RESTARTS)


def continued_from(run: RunConfig, ranks: Ranks) -> str | None:
    """The checkpoints that this start goes on from, if it goes on.

    A command that torchrun or Slurm has started again goes on from the newest whole checkpoint of its run, and so does
    --continue_training that names none. Raises ValueError where a run would be written over another.
    """
    if is_restarted() or (run.continue_training and not run.resume_from_checkpoint):
        newest = ranks.gather(_chosen(run.run_name) if ranks.is_main else None)[0]
        if newest is not None:
            return str(newest)
    elif not run.continue_training and (older := checkpoints_of(run.run_name)):
        raise ValueError(
            f"{run.run_name} already holds {older[0].name}: go on with it by --continue_training, or choose another"
            " --run_name"
        )
    return run.resume_from_checkpoint if run.continue_training else None


def _chosen(run_folder: Path) -> Path | None:
    """The newest whole checkpoint; what was left half-written beside it goes."""
    for left_over in run_folder.glob(f".checkpoint_*{PARTIAL}"):
        left_over.unlink()
    return newest_checkpoint(run_folder)


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The whole checkpoint of the most steps, if the run has any; damaged ones are stepped over, with a warning.

    Raises ValueError where all are damaged.
    """
    steps, problems = {}, []
    for path in checkpoints_of(run_folder):
        try:
            steps[path] = read_checkpoint(path)["step"]
        except (ValueError, KeyError) as error:
            problems.append(f"{path}: {error}")
    for path in sorted(steps, key=steps.__getitem__, reverse=True):
        if is_intact(path):
            for problem in problems:
                logger.warning("a damaged checkpoint is stepped over: %s", problem)
            return path
        problems.append(f"{path} fails its checksums")
    if problems:
        raise ValueError(f"no checkpoint of {run_folder} is whole ({problems[0]}): remove them to start anew")
    return None


def is_intact(path: Path) -> bool:
    """Whether the content of a checkpoint has the checksums that it was written with."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False


def checkpoints_of(run_folder: Path) -> list[Path]:
    """Of epochs and of steps, not the best one, which a run does not go on from."""
    return sorted({*run_folder.glob(EPOCHS), *run_folder.glob(STEPS)})
