"""Dataset inference in processes of its own, which tests kill and start again, and what its folder holds in the end."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from ranks import torchrun_variables
from toy import COLORS, TEXT_ONLY, as_flags, question, write_mixture, write_pictures

from open_flamingo.instruction_tuning.command import run
from open_flamingo.instruction_tuning.instruction_dataset_inference import main

PATIENCE = 120
"""Seconds until a command that does not end fails the test."""
MAX_LENGTH = 100
LONG = {"input": "And so on, " * 20, "output": "An answer."}
"""A record whose prompt is longer than that."""
BATCHES = 8


def write_records(folder: Path) -> Path:
    """A dataset config of 24 records, of which one is too long and one has an image that is not there."""
    write_pictures(folder)
    colours = [*(question(color, other) for color in COLORS for other in COLORS), LONG, question("mauve")]
    texts = [{"input": f"What is the sun?{'?' * i}", "output": "A star."} for i in range(11)]
    return write_mixture(folder, colours=colours, texts=[*texts, *TEXT_ONLY])


def command(checkpoint: Path, data: Path, results: Path, **changes: object) -> list[str]:
    """The flags that answer all records: sampled, eight batches."""
    settings = {
        "checkpoint_paths": checkpoint,
        "instruction_path": data,
        "results_dir": results,
        "num_samples": -1,
        "max_length": MAX_LENGTH,
        "max_new_token": 30,
        "batch_size": 3,
        "temperature": 3.0,
        "no_repeat_ngram_size": 0,
    }
    return as_flags(**settings | changes)


def start(flags: Sequence[str], log: Path, world: int = 1) -> list[BaseProcess]:
    """Start the command on some ranks, each a process that says what it says in a file of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([main.__module__])
    log.parent.mkdir(parents=True, exist_ok=True)
    environments = torchrun_variables(world, world) if world > 1 else [{}]
    outputs = [log.with_suffix(f".{rank}") for rank in range(world)]
    processes = [context.Process(target=_run, args=(e, o, [*flags])) for e, o in zip(environments, outputs)]
    for process in processes:
        process.start()
    return processes


def end(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Wait for the ends of processes: their exit codes, negative ones for signals."""
    for process in processes:
        process.join(PATIENCE)
    hung = [process for process in processes if process.is_alive()]
    kill(hung)
    assert not hung, "waited in vain"
    return [process.exitcode for process in processes]


def kill(processes: Sequence[BaseProcess]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def until(condition: Callable[[], bool], processes: Sequence[BaseProcess]) -> None:
    """Wait until `condition` holds, or the processes have ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def folder_of(results: Path) -> Path:
    """Where a command writes its results."""
    return results / "checkpoint_0" / "mixture_-1"


def answered(results: Path) -> int:
    """The batches that an unfinished run has written."""
    count = 0
    with suppress(FileNotFoundError):  # removed right now, the folder too, since all is answered
        for path in folder_of(results).glob("parts/*.jsonl"):
            count += path.read_bytes().count(b"\n")
    return count


def files(results: Path) -> dict[str, bytes]:
    """All that a finished run has written."""
    folder = folder_of(results)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run(environment: dict[str, str], output: Path, flags: list[str]) -> None:
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    torch.set_num_threads(1)
    run(lambda: main(flags))
