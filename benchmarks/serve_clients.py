"""What the measurements of serving share: a server process of its own, and the requests that clients send to it."""

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from instruction_dataset.records import split_images
from open_flamingo.instruction_tuning.data.formats import Dataset, load_datasets

ROOT = Path(__file__).parents[1]
COMPLETIONS = "/v1/chat/completions"
PATIENCE = 600.0
"""Seconds: until a server is ready, and for its slowest answer."""
SHORT, LONG = 8, 32
"""Tokens that answers to questions about images may have, and those that long answers do have."""
HOT = 50.0
"""A temperature at which all tokens are nearly alike, so that none of the long answers meets the end token."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    url: str

    def client(self) -> httpx.AsyncClient:
        """A client with a connection for each request under way."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, limits=limits, trust_env=False)


@contextmanager
def serving(checkpoint: Path, threads: int, **settings: object) -> Iterator[Server]:
    """A real `uvicorn api:app` with some settings, which ends with the context."""
    variables = {f"FLAMINGO_{name.upper()}": str(value) for name, value in settings.items()}
    others = {name: value for name, value in os.environ.items() if not name.startswith("FLAMINGO_")}
    threads_set = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment = others | variables | threads_set | {"FLAMINGO_CHECKPOINT": str(checkpoint.resolve())}
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", str(port), "--no-access-log"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _is_ready(process, url):
                log.seek(0)
                raise ValueError(f"the server did not start:\n{log.read().decode()}")
            yield Server(process, url)
        finally:
            process.terminate()
            process.wait()


def image_questions(data: Path, checkpoint: Path) -> list[list[dict[str, Any]]]:
    """Requests with the questions of each dataset of a config, and their images; short greedy answers."""
    how = {"max_tokens": SHORT, "temperature": 0}
    return [
        [_request(checkpoint, [*_parts(dataset, record.input)]) | how for record in dataset.records]
        for dataset in load_datasets(data)
    ]


def long_answers(checkpoint: Path) -> list[dict[str, Any]]:
    """Requests without images, each with a seed of its own, whose answers have all the tokens they may have."""
    how = {"max_tokens": LONG, "temperature": HOT}
    texts = (f"Write down whatever comes to your mind about the number {i}." for i in range(1024))
    return [_request(checkpoint, text) | how | {"seed": seed} for seed, text in enumerate(texts)]


def answer_of(response: httpx.Response) -> tuple[str, int]:
    """The text of an answer, and its tokens. Raises ValueError where there is none."""
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"a request was answered with {response.status_code}: {response.text}")
    body = response.json()
    return body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]


def _request(checkpoint: Path, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": checkpoint.resolve().parent.name, "messages": [{"role": "user", "content": content}]}


def _parts(dataset: Dataset, text: str) -> Iterator[dict[str, Any]]:
    pieces, paths = split_images(text)
    for piece, path in zip(pieces, [*paths, None], strict=True):
        if piece:
            yield {"type": "text", "text": piece}
        if path is not None:
            image = base64.b64encode(dataset.image_path(path).read_bytes()).decode()
            yield {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until a server is ready; whether it is, and has not ended."""
    deadline = time.monotonic() + PATIENCE
    with httpx.Client(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/ready").is_success:
                    return True
            except httpx.TransportError:  # it does not listen yet
                time.sleep(0.1)
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
