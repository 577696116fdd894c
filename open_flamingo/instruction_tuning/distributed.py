"""Ranks: who am I, on which device, and what do all of us add up to. One process is a world of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the one rank that writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(dist_url: str = "env://", backend: str | None = None, *, set_device: bool = True) -> Iterator[Ranks]:
    """Join the ranks that `torchrun` started, if any, and leave them at the end."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(int(os.environ.get("LOCAL_RANK", 0)) if set_device else 0)
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    dist.init_process_group(backend, init_method=dist_url, rank=rank, world_size=world_size)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        dist.destroy_process_group()


def pick_device(local_rank: int = 0) -> torch.device:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
