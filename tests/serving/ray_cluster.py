"""A Ray cluster for tests: a process that starts one of two CPUs on this machine and runs `serve run` on it."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from servers import said
from toy import ROOT

PATIENCE = 300
"""Seconds until a cluster that does not do what it should fails the test: its start is a dozen imports of Ray."""
COMMAND = """
import sys
import ray
from ray.serve.scripts import cli
ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, namespace="serve", _temp_dir=sys.argv[1])
cli(["run", sys.argv[2]])
"""
"""`serve run` alone would start a cluster with all of this machine."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that serves."""

    process: psutil.Popen
    url: str

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return [child for child in self.process.children(recursive=True) if "ray::ServeReplica:" in _title(child)]

    def is_ready(self) -> bool:
        """Whether requests are answered."""
        try:
            return httpx.get(f"{self.url}/ready").is_success
        except httpx.TransportError:
            return False

    def answers(self) -> dict[float, float]:
        """How many answers each replica has made, by the time of its start."""
        counts = {}
        for _ in range(12):  # each request is for any of the replicas
            lines = httpx.get(f"{self.url}/metrics").text.splitlines()
            metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            if "process_start_time_seconds" in metrics:
                count = sum(
                    float(value) for name, value in metrics.items() if name.startswith("flamingo_answers_total")
                )
                counts[float(metrics["process_start_time_seconds"])] = count
        return counts

    def end(self) -> list[psutil.Process]:
        """End it as Ctrl-C does; the processes that are left of it."""
        family = self.process.children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        return psutil.wait_procs([*family, self.process], PATIENCE)[1]


@contextmanager
def ray_cluster(config: Path, url: str) -> Iterator[Cluster]:
    """A cluster that serves a config at `url`; it must end without leaving a process."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    log = config.with_suffix(".log")
    # the paths of sockets in it have at most 107 characters
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, log.open("wb") as output:
        command = [sys.executable, "-c", COMMAND, folder, str(config)]
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            cluster = Cluster(process, url)
            patiently(lambda: cluster.is_ready() or process.poll() is not None)
            assert process.poll() is None, said(log)
            yield cluster
            assert cluster.end() == []
        finally:
            kill(process)


def patiently(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def kill(process: psutil.Popen) -> None:
    """Kill a process and all that it has started, if it still runs."""
    if process.poll() is None:
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family, PATIENCE)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
