"""The commands and programs of the documents, run as they stand there against a real server."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server
from toy import ROOT

ADDRESS = "http://127.0.0.1:8000"
PICTURE = "runs/quickstart/digits/images/0393.png"
DOCUMENTS = ("README.md", "docs/serving.md")


def blocks(language: str, marker: str) -> list[str]:
    """The code of a language in the documents that holds `marker`."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    found = [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return [block for block in found if marker in block]


CURL = blocks("bash", f"curl {ADDRESS}")
PYTHON = blocks("python", "from openai")


@pytest.fixture(scope="module")
def quickstart(started) -> Iterator[Server]:
    """A server whose model is called as the quickstart's."""
    with started(model_name="quickstart") as server:
        yield server


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    """A folder with the picture that the documents ask about."""
    (tmp_path / PICTURE).parent.mkdir(parents=True)
    shutil.copy(pictures / "red.png", tmp_path / PICTURE)
    return tmp_path


def run(command: list[str], server: Server, folder: Path) -> str:
    """What a command says whose address is the server's."""
    command = [argument.replace(ADDRESS, server.url) for argument in command]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout


def test_there_are_commands_and_programs_to_run():
    assert (len(CURL), len(PYTHON)) == (3, 2)


@pytest.mark.parametrize("block", CURL, ids=range(len(CURL)))
def test_each_curl_command_is_answered(quickstart, folder, block):
    answer = run(["bash", "-e", "-c", block.replace("curl ", "curl --silent --fail-with-body ")], quickstart, folder)
    assert answer
    assert '"error"' not in answer


def test_a_curl_command_about_a_picture_gets_its_answer(quickstart, folder):
    (block,) = (block for block in CURL if "base64" in block)
    answer = json.loads(run(["bash", "-e", "-c", block], quickstart, folder))
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] > 1


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_each_program_with_openais_client_gets_an_answer(quickstart, folder, block):
    assert run([sys.executable, "-c", block], quickstart, folder).strip()
