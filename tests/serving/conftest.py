"""A server of the toy task's model for all tests, and more of them for tests that need settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

import pytest
from openai import OpenAI
from servers import Server, served

from open_flamingo.instruction_tuning.inferencer import Inferencer

Started = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session", autouse=True)
def no_proxy() -> Iterator[None]:
    """Whatever proxies there are, a server of this machine is asked itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session")
def checkpoint(toy_run: Path) -> Path:
    """What is served."""
    return toy_run / "checkpoint_0.pt"


@pytest.fixture(scope="session")
def inferencer(checkpoint: Path) -> Inferencer:
    """The model that is served, without a server."""
    return Inferencer(str(checkpoint))


@pytest.fixture(scope="session")
def started(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Started:
    """Starts a server of some settings, as `with started(queue_size=1) as server`; when the context ends so does it."""
    folder, numbers = tmp_path_factory.mktemp("servers"), count()

    def start(**settings: object) -> AbstractContextManager[Server]:
        environment = {f"FLAMINGO_{name.upper()}": str(value) for name, value in settings.items()}
        return served(folder / f"{next(numbers)}.log", {"FLAMINGO_CHECKPOINT": str(checkpoint)} | environment)

    return start


@pytest.fixture(scope="session")
def server(started: Started, pictures: Path) -> Iterator[Server]:
    """A server of default settings that may read the toy task's pictures."""
    with started(image_folders=pictures) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> OpenAI:
    """OpenAI's client of that server."""
    return server.client()
