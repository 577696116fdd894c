"""What a server says of itself, how the real command starts, and the one shape of errors."""

import re
import signal
import subprocess
import sys

import httpx
import pytest
from servers import MODEL, PATIENCE, said, until, user
from toy import ROOT

from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.serving.app import create_app

HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello <image>"}]}


def test_the_command_serves_and_says_what(checkpoint, tmp_path):
    log = tmp_path / "log"
    environment = {"PATH": "", "FLAMINGO_CHECKPOINT": str(checkpoint), "HF_HUB_OFFLINE": "1", "FLAMINGO_API_KEY": "k"}
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: "Uvicorn running" in said(log) or process.poll() is not None)
        url = re.search(r"running on (\S+)", said(log))[1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert re.search(rf"serving {MODEL} \({checkpoint}\): \d+ million parameters, fp32 on cpu", said(log))
    assert "a queue of 64, prompts of 4096 tokens with 16 images" in said(log)
    assert "images by path from 0 folders, URLs are not fetched; requests need the key" in said(log)


def test_nothing_is_read_or_loaded_before_the_app_starts(monkeypatch):
    monkeypatch.setenv("FLAMINGO_CHECKPOINT", "nowhere.pt")
    monkeypatch.setenv("FLAMINGO_BATCH_SIZE", "many")
    assert {"settings", "desk"}.isdisjoint(create_app().state._state)


def test_a_server_is_up_and_ready(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "up"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}


def test_the_exact_prompt_is_shown(server, pictures):
    asked = [user("Look: ", pictures / "red.png", "?"), {"role": "assistant", "content": "red"}, HELLO["messages"][0]]
    answer = httpx.post(f"{server.url}/prompt", json=HELLO | {"messages": asked}).json()
    first = format_prompt("Look: <image>?", "guanaco-no-prompt")
    assert answer["prompt"] == f"{first}red<|endoftext|>\n{format_prompt('Hello <image>', 'guanaco-no-prompt')}"
    assert answer["images"] == 1
    completion = httpx.post(f"{server.url}/v1/chat/completions", json=HELLO | {"messages": asked, "max_tokens": 1})
    assert completion.json()["usage"]["prompt_tokens"] == answer["tokens"]


def test_metrics_count_requests_batches_and_tokens(server):
    names = (
        "prompt_tokens_total",
        "generated_tokens_total",
        "batch_rows_count",
        'answers_total{finish_reason="length"}',
    )
    before = [server.metric(f"flamingo_{name}") for name in names]
    usage = httpx.post(f"{server.url}/v1/chat/completions", json=HELLO | {"max_tokens": 2}).json()["usage"]
    after = [server.metric(f"flamingo_{name}") for name in names]
    grown = [int(now - then) for now, then in zip(after, before, strict=True)]
    assert grown == [usage["prompt_tokens"], 2, 1, 1]
    assert server.metric('flamingo_requests_total{path="/v1/chat/completions",status="200"}') >= 1
    assert server.metric("process_resident_memory_bytes") > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/nowhere", None, 404, "not_found_error"),
        ("GET", "/v1/chat/completions", None, 405, "invalid_request_error"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", b"", 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_request_error"),
        ("POST", "/", b"\xff\xfe", 400, "invalid_request_error"),
        ("POST", "/prompt", b'{"model": "toy", "messages": [], "temperature": NaN}', 400, "invalid_request_error"),
    ],
    ids=range(7),
)
def test_every_error_has_the_one_shape(server, method, path, body, status, kind):
    answer = httpx.request(method, server.url + path, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, kind)
    assert error.keys() == {"message", "type", "param", "code"}


def test_a_body_is_json_whatever_its_content_type_says(server):
    content = '{"model": "toy", "messages": [{"role": "user", "content": "Hello"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        answer = httpx.post(f"{server.url}/prompt", content=content, headers={"Content-Type": kind})
        assert answer.json()["prompt"] == format_prompt("Hello", "guanaco-no-prompt")


def test_a_web_page_that_settings_name_may_call(started):
    page = {"Origin": "https://demo.example.org"}
    asks = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with started(origins=page["Origin"], api_key="secret") as server:
        assert httpx.options(f"{server.url}/v1/chat/completions", headers=asks).status_code == 200
        answer = httpx.get(f"{server.url}/v1/models", headers=page | {"Authorization": "Bearer secret"})
        assert answer.headers["access-control-allow-origin"] == page["Origin"]
        assert httpx.get(f"{server.url}/v1/models", headers={"Origin": "https://other.org"}).status_code == 403
