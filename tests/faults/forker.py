"""Forks ranks of training, each a whole process of its own, from one that has imported everything: started by launch.py.

A line of JSON asks for one thing and gets one line back: a rank, which is answered with its process id, or the exit codes
of all ranks that have ended.
"""

import json
import os
import sys
from typing import Any

import sabotage
import torch

from open_flamingo.instruction_tuning.command import run
from open_flamingo.instruction_tuning.train import main


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a forked rank, what is asked of it."""
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "flags" in request:
            pid = os.fork()
            if pid == 0:
                return request
            answer = str(pid)
        else:
            reap(codes)
            answer = json.dumps(codes)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
    return None


def reap(codes: dict[int, int]) -> None:
    """Add the exit codes of the children that have ended, negative ones for signals."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        pass


def become(rank: dict[str, Any]) -> None:
    """Take over the environment and the files of a rank, and a process group of its own, for its loader workers too."""
    os.setpgid(0, 0)
    os.environ.update(rank["environment"])
    for path, descriptor in ((os.devnull, 0), (rank["output"], 1), (rank["errors"], 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    for name, arguments in rank["sabotage"].items():
        getattr(sabotage, name)(**arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = serve()
    if rank is not None:
        become(rank)
        run(lambda: main(rank["flags"]))
