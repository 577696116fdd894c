"""Real ranks on one machine: processes forked from one that has imported everything, joined by gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from open_flamingo.instruction_tuning.distributed import joined

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_variables(world: int, node_size: int) -> list[dict[str, str]]:
    """What torchrun tells each of `world` ranks on nodes of `node_size`."""
    port = free_port()
    values = [(rank, rank % node_size, world, node_size, "127.0.0.1", port) for rank in range(world)]
    return [dict(zip(VARIABLES, map(str, row), strict=True)) for row in values]


def on_ranks(
    envs: Sequence[dict[str, str]], folder: Path, work: Callable[..., Any], *args: Any, patience: float = 240
) -> list[Any]:
    """What `work(ranks, *args)` returns in one process for each of `envs`; None where the process failed.

    Processes that wait for each other for longer than `patience` seconds fail the test.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["open_flamingo", "ranks"])
    folder.mkdir(parents=True)
    results = [folder / f"{rank}.pt" for rank in range(len(envs))]
    processes = [context.Process(target=_run, args=(env, out, work, args)) for env, out in zip(envs, results)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(patience)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, f"{len(hung)} ranks hung"
    return [torch.load(out, weights_only=True) if out.exists() else None for out in results]


def _run(env: dict[str, str], out: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    with joined() as ranks:
        result = work(ranks, *args)
    torch.save(result, out)
