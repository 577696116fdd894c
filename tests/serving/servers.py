"""Servers that tests talk to: real processes that run `uvicorn api:app`, forked from one that has imported everything."""

import base64
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import OpenAI
from toy import ROOT
from uvicorn.main import main

PATIENCE = 60
"""Seconds until a server that does not do what it should fails the test."""
MODEL = "toy"
"""What the served model is called, after its run."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: BaseProcess
    log: Path
    url: str

    def client(self, **settings: Any) -> OpenAI:
        """OpenAI's client of it."""
        return OpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | settings))

    def metric(self, name: str) -> float:
        """One of its metrics, with its labels as they are written."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def launch(log: Path, environment: dict[str, str]) -> BaseProcess:
    """Start `uvicorn api:app` on a free port; what it says goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["open_flamingo.serving.app"])
    process = context.Process(target=_run, args=(log, environment))
    process.start()
    return process


@contextmanager
def served(log: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A server, from when it is ready; it is killed at the end if it still runs."""
    process = launch(log, environment)
    try:
        until(lambda: "Uvicorn running" in said(log) or not process.is_alive())
        assert process.is_alive(), said(log)
        server = Server(process, log, re.search(r"running on (\S+)", said(log))[1])
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
        yield server
    finally:
        process.kill()
        process.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def said(log: Path) -> str:
    """What a server has said so far."""
    return log.read_text() if log.exists() else ""


def data_url(path: Path) -> str:
    """An image as it stands in a request."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def image_part(path: Path) -> dict[str, Any]:
    """An image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(path)}}


def user(*parts: str | Path) -> dict[str, Any]:
    """What a user says: texts, and images by their paths."""
    content = [image_part(part) if isinstance(part, Path) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def _run(log: Path, environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("FLAMINGO_")]:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(log.parent)
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    torch.set_num_threads(1)
    main(["api:app", "--app-dir", str(ROOT), "--port", "0"])
