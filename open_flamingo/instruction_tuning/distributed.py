"""Ranks: who am I, on which device, and what do all of us add up to. One process is a world of one."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SLURM_PORTS = 15000
"""Where the ports begin that Slurm jobs meet at, each at that of its number."""

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""From here on, numbers of Slurm steps mean batch scripts and interactive shells."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int
    world_size: int
    device: torch.device
    node_size: int = 1
    """Ranks on this node."""

    @property
    def is_main(self) -> bool:
        """True for the one rank that writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any rank."""
        return bool(self.sum(torch.tensor(int(value), device=self.device)))

    def gather(self, value: object) -> list[Any]:
        """The values of all ranks, on every rank, by pickling: for small ones."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


@dataclass(frozen=True)
class Launch:
    """What the launcher of this process says of it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node_size: int = 1
    """Processes on this node."""
    meeting_point: str | None = None
    """`tcp://host:port` of the first process, where the launcher does not say it to PyTorch itself."""


def launch_of(env: Mapping[str, str]) -> Launch:
    """The launch that the environment `env` tells of: of torchrun, of Slurm's srun, or of a single process.

    Raises ValueError where Slurm does not say on which host the first process runs.
    """
    if "RANK" in env:
        world = int(env.get("WORLD_SIZE", 1))
        return Launch(int(env["RANK"]), world, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", world)))
    if not _is_slurm_task(env):
        return Launch()
    world = _slurm_tasks(env)
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
    port = env.get("MASTER_PORT") or SLURM_PORTS + int(env.get("SLURM_JOB_ID", 0)) % 10000
    meeting_point = f"tcp://{_slurm_first_host(env)}:{port}"
    return Launch(int(env["SLURM_PROCID"]), world, int(env.get("SLURM_LOCALID", 0)), -(-world // nodes), meeting_point)


def _is_slurm_task(env: Mapping[str, str]) -> bool:
    # A batch script and an interactive shell carry the numbers of a job of many tasks too, but are one process, which
    # would wait for the others for ever: only a numbered step of srun runs the command once per task, and not with --pty.
    step = env.get("SLURM_STEP_ID", "")
    is_srun = step.isdecimal() and int(step) < FIRST_SPECIAL_STEP and "SLURM_PTY_PORT" not in env
    return is_srun and "SLURM_PROCID" in env and _slurm_tasks(env) > 1


def _slurm_tasks(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)


def _slurm_first_host(env: Mapping[str, str]) -> str:
    if host := env.get("MASTER_ADDR"):
        return host
    if nodes := env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST"):
        return first_host(nodes)
    if address := env.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise ValueError("Slurm names no host of this job: set MASTER_ADDR to the host of the first task")


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: `gpu03` of `gpu[03-05,07],login1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group()) if first else nodes


@contextmanager
def joined(dist_url: str = "env://", backend: str | None = None, *, set_device: bool = True) -> Iterator[Ranks]:
    """Join the ranks that torchrun or Slurm's `srun` started, if any, and leave them at the end."""
    launch = launch_of(os.environ)
    device = pick_device(launch.local_rank if set_device else 0)
    if launch.world_size == 1:
        yield Ranks(0, 1, device)
        return
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    url = launch.meeting_point if launch.meeting_point and dist_url == "env://" else dist_url
    store, _, _ = next(dist.rendezvous(url, launch.rank, launch.world_size))
    # torchrun's store outlives its workers: started again, they would find each other's addresses of the time before
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size)
    yield Ranks(launch.rank, launch.world_size, device, launch.node_size)
    # not after an error: leaving waits for what the other ranks began, while the end of this process tells them
    dist.destroy_process_group()


def pick_device(local_rank: int = 0) -> torch.device:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
