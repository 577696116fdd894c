"""What goes wrong inside a rank, arranged before it starts."""

import atexit
import hashlib
import os
import resource
import signal
import sys
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import get_worker_info

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning import train
from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.data.loader import Epoch, Sample
from open_flamingo.instruction_tuning.trainer import Step, Trainer
from open_flamingo.src.loss import SupervisedLoss


def nan_loss(rank: int, steps: list[int]) -> None:
    """Make the loss of one rank NaN at some forward passes, counted from 1."""
    calls = 0

    def poison(module: nn.Module, _args: Any, out: Any) -> None:
        nonlocal calls
        if not isinstance(module, Flamingo) or not isinstance(out, SupervisedLoss):
            return
        calls += 1
        if os.environ["RANK"] == str(rank) and calls in steps:
            out.total = out.total * float("nan")
            out.losses.fill_(float("nan"))

    register_module_forward_hook(poison)


def file_size_limit(size: int) -> None:
    """Let no file grow beyond `size` bytes: writing more fails, as it does where a disk is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def killed_while_saving(call: int) -> None:
    """Kill the process at one of its calls of `os.fsync`: of each checkpoint before its rename, of the folder after it."""
    fsync, calls = os.fsync, 0

    def deadly(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly


def worker_killed(rank: int, sample: int) -> None:
    """Kill the loader worker of a rank as it begins its `sample`-th sample, counted from 1."""
    load, calls = Epoch.__getitem__, 0

    def deadly(epoch: Epoch, index: int) -> Sample:
        nonlocal calls
        calls += 1
        if calls == sample and get_worker_info() is not None and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return load(epoch, index)

    Epoch.__getitem__ = deadly


def unsupervised(ranks: list[int], steps: list[int]) -> None:
    """Take the supervised tokens from the batches of some ranks at some steps, counted from 1."""
    step, calls = train.train_step, 0

    def emptied(trainer: Trainer, window: list[Batch], datasets: int = 1) -> Step:
        nonlocal calls
        calls += 1
        if calls in steps and trainer.ranks.rank in ranks:
            for batch in window:
                batch.supervised.zero_()
        return step(trainer, window, datasets)

    train.train_step = emptied


def fingerprint() -> None:
    """Print a hash of this rank's weights at its end."""
    models: list[Flamingo] = []

    def keep(module: nn.Module, _args: Any, _out: Any) -> None:
        if isinstance(module, Flamingo):
            models[:] = [module]

    def tell() -> None:
        values = b"".join(p.detach().numpy().tobytes() for p in models[0].parameters())
        sys.stdout.write(hashlib.sha256(values).hexdigest())

    register_module_forward_hook(keep)
    atexit.register(tell)
