"""A server with more to do than it can: who is refused, who is given up, and how it ends."""

import json
import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import httpx
import openai
import pytest
from PIL import Image
from servers import MODEL, Server, image_part, until, user

from instruction_dataset.records import Record
from open_flamingo.instruction_tuning.generation import Prompt, Settings

SUN = {"role": "user", "content": "What is the sun?"}
GO_ON = {"role": "user", "content": "Go on until you stop."}
DRAWN = {"temperature": 1e6, "seed": 7233, "max_tokens": 3000}
"""Each token is as likely as any other, and with this seed only the 1,733rd ends the answer: it takes seconds."""
SHORT = {"model": MODEL, "messages": [SUN], "temperature": 0}
LONG = {"model": MODEL, "messages": [GO_ON], **DRAWN}


@pytest.fixture(scope="module")
def narrow(started) -> Iterator[Server]:
    """A server that answers one request after the other, and lets one wait."""
    with started(batch_size=1, queue_size=1, max_new_tokens=3000) as server:
        yield server


def post(server: Server, body: dict, **settings) -> httpx.Response:
    """The answer to a chat completion."""
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, **({"timeout": 60} | settings))


@contextmanager
def streaming(server: Server, body: dict) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun; when the context ends its client goes away."""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        assert answer.status_code == 200
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        yield lines


def given_up(server: Server, reason: str) -> float:
    """How many requests were given up."""
    return server.metric(f'flamingo_abandoned_total{{reason="{reason}"}}')


def test_where_the_queue_is_full_a_request_is_told_when_to_come_again(narrow):
    with ThreadPoolExecutor() as pool, streaming(narrow, LONG):
        waits = pool.submit(post, narrow, SHORT)
        until(lambda: narrow.metric("flamingo_waiting") == 1)
        with pytest.raises(openai.RateLimitError, match="the queue is full") as caught:
            narrow.client().chat.completions.create(**SHORT)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert not waits.done()
    assert waits.result().json()["choices"][0]["message"]["content"] == "A star."


def test_openais_client_comes_again_by_itself(narrow):
    with ThreadPoolExecutor() as pool:
        with streaming(narrow, LONG):
            pool.submit(post, narrow, SHORT)
            until(lambda: narrow.metric("flamingo_waiting") == 1)
            busy = 'flamingo_requests_total{path="/v1/chat/completions",status="429"}'
            before = narrow.metric(busy)
            patient = pool.submit(narrow.client(max_retries=5).chat.completions.create, **SHORT)
            until(lambda: narrow.metric(busy) > before)
        assert patient.result().choices[0].message.content == "A star."


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_stops_its_answer(narrow, streams):
    before, tokens = given_up(narrow, "gone"), narrow.metric("flamingo_generated_tokens_total")
    if streams:
        with streaming(narrow, LONG):
            pass
    else:
        with pytest.raises(httpx.ReadTimeout):
            post(narrow, LONG, timeout=0.5)
    assert post(narrow, SHORT).json()["choices"][0]["message"]["content"] == "A star."
    assert given_up(narrow, "gone") == before + 1
    assert narrow.metric("flamingo_generated_tokens_total") - tokens < 1500


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(narrow):
    before = given_up(narrow, "gone")
    with streaming(narrow, LONG):
        with pytest.raises(httpx.ReadTimeout):
            post(narrow, SHORT, timeout=0.5)
        until(lambda: given_up(narrow, "gone") == before + 1)
        assert narrow.metric("flamingo_waiting") == 0


def test_an_answer_that_takes_too_long_is_given_up(started):
    with started(request_timeout=0.5, max_new_tokens=3000) as server:
        answer = post(server, LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        with pytest.raises(openai.APIError, match=r"took longer than 0\.5 seconds"):
            list(server.client().chat.completions.create(stream=True, **LONG))
        assert given_up(server, "late") == 2
        assert post(server, SHORT).status_code == 200


def test_images_count_for_the_time_limit_and_none_is_decoded_for_a_client_that_has_gone(started):
    file = BytesIO()
    Image.new("L", (7000, 7000)).save(file, "PNG")  # takes most of a second
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}}
    many = {"model": MODEL, "messages": [{"role": "user", "content": [part] * 16}]}
    with started(request_timeout=1) as server:
        answer = post(server, many)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    with started() as server:
        with pytest.raises(httpx.ReadTimeout):
            post(server, many, timeout=0.5)
        until(lambda: server.metric('flamingo_requests_total{path="/v1/chat/completions",status="499"}') == 1)
        assert post(server, SHORT).status_code == 200
        assert server.metric("flamingo_images_total") == 0


def test_at_sigterm_what_runs_is_finished_and_what_waits_is_refused(started, inferencer):
    prompt = Prompt(inferencer.turns.question(Record(GO_ON["content"], "-"))[0])
    settings = Settings(max_new_tokens=400, do_sample=True, temperature=1e6)
    with started(batch_size=1) as server, ThreadPoolExecutor() as pool:
        with streaming(server, LONG | {"max_tokens": 400}) as lines:
            waits = pool.submit(post, server, SHORT)
            until(lambda: server.metric("flamingo_waiting") == 1)
            os.kill(server.process.pid, signal.SIGTERM)
            refused = waits.result()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "closing")
            events = [line.removeprefix("data: ") for line in lines if line]
        with pytest.raises(httpx.ConnectError):
            post(server, SHORT)
        server.process.join(60)
        assert server.process.exitcode == -signal.SIGTERM
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    (own,) = inferencer.answer([prompt], settings, [7233])
    assert "".join(pieces) == own.text


def test_requests_that_are_refused_do_not_harm_those_beside_them(server, pictures):
    good = [{"model": MODEL, "messages": [user(pictures / f"{c}.png", "Which colour?")]} for c in ("red", "blue")]
    broken = [image_part(pictures / "red.png"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    bad = [
        {"model": MODEL, "messages": [{"role": "user", "content": broken}]},
        {"model": MODEL, "messages": [SUN], "n": 100},
        {"model": MODEL, "messages": "no messages"},
    ]
    asked = [body | {"temperature": 0} for body in [*good, *bad, *good, *bad]]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda body: post(server, body), asked))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400, 400] * 2
    said = [answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.status_code == 200]
    assert said == ["red", "blue"] * 2


def test_requests_that_wait_are_answered_together(server):
    answers, batches = server.metric("flamingo_batch_rows_sum"), server.metric("flamingo_batch_rows_count")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: post(server, SHORT), range(16)))
    assert server.metric("flamingo_batch_rows_sum") - answers == 16
    assert server.metric("flamingo_batch_rows_count") - batches < 16
