"""The command `gradio_demo.py`: its flags, and that it ends whenever it is told to."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from servers import PATIENCE, until
from toy import ROOT


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_the_demo_needs_no_model_in_its_process():
    code = "import sys, gradio_demo, demo.page; print([m for m in sys.modules if m.split('.')[0] in %r])"
    ended = run_python("-c", code % (("torch", "transformers", "open_flamingo"),))
    assert ended.stdout == "[]\n", ended.stderr


def test_help_teaches_without_loading_gradio():
    ended = run_python("-X", "importtime", "gradio_demo.py", "--help")
    assert ended.returncode == 0
    assert "uvicorn api:app" in ended.stdout
    assert all(flag in ended.stdout for flag in ("--api ", "--api_key", "--host", "--port", "--log_dir", "--no_log"))
    assert " gradio\n" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--api", "nonsense"], "--api 'nonsense' is no address"),
        (["--api", "http://[::1"], "--api 'http://[::1' is no address"),
        (["--log_dir", "setup.py"], "setup.py"),
        (["--log_dir", "setup.py", "--api_key", "right\n"], "setup.py"),
        (["--api_key", "größe"], "the key may hold printable ASCII only"),
        (["--port", "0"], "--port is from 1 to 65535"),
        (["--port", "65536"], "--port is from 1 to 65535"),
        (["--host", "::1"], "IPv4"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_a_sentence(flags, said):
    ended = run_python("gradio_demo.py", *flags)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said_in_the_demos_own_words():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run_python("gradio_demo.py", "--no_log", "--port", str(port))
    assert ended.returncode == 2
    assert f"cannot listen at 127.0.0.1, port {port}: " in ended.stderr
    assert "GRADIO_" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_ended_while_it_starts_and_leaves_nothing(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "gradio_demo.py", "--no_log"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: any(tmp_path.glob("flamingo-demo-*")))
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE) == ("", None)
    finally:
        process.kill()
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
