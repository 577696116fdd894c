"""Training on two ranks that a test can signal, kill and continue, and how two runs are compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from toy import ROOT

WORLD = 2
LAST = "checkpoint_2.pt"
"""What a finished run holds, of three epochs of four steps; every third step is saved as well."""
PATIENCE = 120
"""Seconds until a run that does not end fails the test."""
GRACE = 30
"""Seconds that torchrun leaves the other ranks to end once one has failed."""
WELL = (None, 0, 130)
"""The exit codes of ranks that run, have ended, or were stopped by Ctrl-C."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Forker:
    """The process that ranks are forked from."""

    def __init__(self, folder: Path) -> None:
        """What ranks say goes to files in `folder`."""
        self.folder = folder
        self.jobs = 0
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("forker.py"))],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def codes(self) -> dict[int, int]:
        """The exit codes of all ranks that have ended."""
        return {int(pid): code for pid, code in self.ask({}).items()}

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@dataclass
class Job:
    """A command on two ranks; this plays the part of torchrun, which ends all ranks once one has failed."""

    forker: Forker
    pids: list[int]
    outputs: list[Path]
    codes: list[int | None] = field(default_factory=lambda: [None] * WORLD)

    def poll(self) -> None:
        """See which ranks have ended."""
        ended = self.forker.codes()
        self.codes = [ended.get(pid) for pid in self.pids]

    @property
    def is_over(self) -> bool:
        """Whether all ranks have ended."""
        self.poll()
        return None not in self.codes

    def send(self, number: signal.Signals, ranks: Sequence[int] = range(WORLD)) -> None:
        """Send a signal to ranks and their loader workers, as torchrun does."""
        self.poll()
        for rank in ranks:
            if self.codes[rank] is None:
                with suppress(ProcessLookupError):
                    os.killpg(self.pids[rank], number)

    def kill(self) -> "Job":
        """Kill all ranks and their workers, and wait until they are gone."""
        self.send(signal.SIGKILL)
        until(lambda: self.is_over)
        return self

    def wait(self) -> "Job":
        """Wait until all ranks have ended; once one has failed, the others are ended."""
        until(lambda: self.is_over or any(code not in WELL for code in self.codes))
        if not self.is_over:
            self.send(signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            until(lambda: self.is_over or time.monotonic() > deadline)
            self.send(signal.SIGKILL)
            until(lambda: self.is_over)
        return self

    @property
    def stderr(self) -> str:
        """What all ranks said, without the progress bar."""
        lines = [line for path in self.outputs for line in path.read_text().split("\n")]
        return "\n".join(line.rpartition("\r")[2] for line in lines)

    @property
    def stdout(self) -> list[str]:
        """What each rank printed."""
        return [path.with_suffix(".stdout").read_text() for path in self.outputs]

    @property
    def errors(self) -> list[str]:
        """The lines that a failed command ends with."""
        return [line for line in self.stderr.splitlines() if "error: " in line and " INFO " not in line]


def only_error(job: Job) -> str:
    """The one error that a failed command ends with, whichever rank says it."""
    assert None not in job.codes
    assert 0 not in job.codes, job.stderr
    assert 1 in job.codes, job.stderr
    assert "Traceback" not in job.stderr, job.stderr
    errors = {error.partition("error: ")[2] for error in job.errors}
    assert len(errors) == 1, job.stderr
    return errors.pop()


def start(forker: Forker, flags: Sequence[str], run: Path, sabotage: Mapping[str, Any] | None = None) -> Job:
    """Start training into the folder `run` on two ranks."""
    forker.jobs += 1
    outputs = [forker.folder / f"job{forker.jobs}-rank{rank}.stderr" for rank in range(WORLD)]
    meeting_point = f"--dist_url=file://{outputs[0].with_suffix('.store')}"
    pids = []
    for rank, output in enumerate(outputs):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
        request = {
            "flags": [*flags, f"--run_name={run}", meeting_point],
            "environment": {name: str(value) for name, value in variables.items()},
            "output": str(output.with_suffix(".stdout")),
            "errors": str(output),
            "sabotage": sabotage or {},
        }
        pids.append(forker.ask(request))
    return Job(forker, pids, outputs)


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def content(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds."""
    return torch.load(path, weights_only=True)


def losses(run: Path) -> dict[int, float]:
    """The logged losses by step, of a step that was taken again the later one."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints' contents are equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def names(run: Path) -> set[str]:
    """The checkpoints that a run holds, half-written ones too."""
    return {path.name for path in run.glob("*checkpoint_*")}
